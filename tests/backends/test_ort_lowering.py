"""What is changed in ONNX Runtime's optimized graph: fewer nodes, the same values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from tests.backends import building
from tests.graph import models
from tests.quantization import networks
from trtbuild.backends import onnxruntime
from trtbuild.backends.ort_session import open_graph, open_session
from trtbuild.graph.optimize import optimize

if TYPE_CHECKING:
    from pathlib import Path

    from tests.graph.models import Array
    from trtbuild.graph import Graph

HEAD = "g (float[N, 5, 16] x) => (float[N, 5, 8] y) {"
BIASED = {
    "bias": "m = MatMul(x, w) y = Add(m, b) }",
    "bias first": "m = MatMul(x, w) y = Add(b, m) }",
    "then Gelu": "m = MatMul(x, w) a = Add(m, b) y = Gelu(a) }",
}
UNBIASED = {
    "one number": "m = MatMul(x, w) y = Add(m, one) }",
    "a matrix": "m = MatMul(x, w) y = Add(m, c) }",
    "a product that others read": "m = MatMul(x, w) a = Add(m, b) y = Mul(a, m) }",
}


def built(body: str, tmp_path: Path) -> tuple[Graph, list[str], dict[str, list[str]]]:
    parts = {
        "w": models.normal(16, 8, seed=1),
        "b": models.normal(8, seed=2),
        "one": models.normal(1, seed=3),
        "c": models.normal(5, 8, seed=4),
    }
    used = {name: array for name, array in parts.items() if _read(body, name)}
    source = models.write(tmp_path / "s.onnx", HEAD + body, used, opset=20, ir_version=9)
    graph, _ = optimize(source, tmp_path / "o.onnx")
    result = networks.quantized(graph, onnxruntime.SCHEME, x(32))
    record = building.build(result, building.ORT, tmp_path / "engine")
    layers = record.layers.layers
    return (
        result,
        [layer.kind for layer in layers],
        {layer.kind: list(layer.nodes) for layer in layers},
    )


def _read(body: str, name: str) -> bool:
    return any(f"{left}{name}{right}" in body for left in "( " for right in "),")


def x(number: int) -> Array:
    return models.normal(number, 5, 16, seed=5)


def outputs(graph: Graph, tmp_path: Path) -> tuple[Array, Array]:
    """Return what the graph and what its engine computes."""
    feeds = {"x": x(3)}
    session = open_session((tmp_path / "engine").read_bytes(), building.ORT)
    return open_graph(graph.path, fused=True).run(feeds)["y"], session.run(feeds)["y"]


@pytest.mark.parametrize("body", BIASED.values(), ids=list(BIASED))
def test_the_bias_of_an_integer_product_becomes_part_of_it(body: str, tmp_path: Path) -> None:
    graph, kinds, nodes = built(body, tmp_path)
    assert "Add" not in kinds
    assert any(name.startswith("Add") for name in nodes["MatMulIntegerToFloat"])
    expected, got = outputs(graph, tmp_path)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("body", UNBIASED.values(), ids=list(UNBIASED))
def test_what_is_no_bias_stays_a_sum(body: str, tmp_path: Path) -> None:
    graph, kinds, _ = built(body, tmp_path)
    assert "Add" in kinds
    expected, got = outputs(graph, tmp_path)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_fusions_with_slow_kernels_stay_off(tmp_path: Path) -> None:
    text = """g (float[N, 5, 16] x) => (float[N, 5, 16] y) {
        m = MatMul(x, w) a = Add(m, b) g = Gelu(a) s = Add(g, x)
        y = LayerNormalization(s, scale, b)
    }"""
    weights = {
        "w": models.normal(16, 16, seed=1),
        "b": models.normal(16, seed=2),
        "scale": models.normal(16, seed=3),
    }
    graph = models.write(tmp_path / "m.onnx", text, weights, opset=20, ir_version=9)
    record = building.build(graph, building.ORT, tmp_path / "engine")
    kinds = {layer.kind for layer in record.layers.layers}
    assert {"Gelu", "LayerNormalization"} <= kinds
    assert not {"BiasGelu", "SkipLayerNormalization"} & kinds
    engine = onnx.load(tmp_path / "engine")
    assert any("Gelu" in node.op_type for node in engine.graph.node)


def test_a_recurrent_node_is_a_compute_layer(tmp_path: Path) -> None:
    text = """g (float[T, N, 4] x) => (float[T, 1, N, 8] y) {
        y = LSTM<hidden_size = 8>(x, w, r)
    }"""
    weights = {"w": models.normal(1, 32, 4, seed=1), "r": models.normal(1, 32, 8, seed=2)}
    graph = models.write(tmp_path / "m.onnx", text, weights)
    record = building.build(graph, building.ORT, tmp_path / "engine")
    compute = [layer.nodes for layer in record.layers.layers if layer.compute]
    assert compute == [("LSTM_0",)]
    assert record.layers.precision_achieved == {"fp32": 1}
