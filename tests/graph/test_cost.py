"""Multiply-accumulates by node, at the shapes that a profile calls optimal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.graph import models
from tests.quantization import networks
from trtbuild.backends import tensorrt_rtx
from trtbuild.engine import ShapeRange
from trtbuild.graph.cost import count_macs, quantizer_names

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """g (float[N, 4, 8, 8] x, float[N, 6] v) => (float y, float z) {
    a = Conv<group = 2, strides = [2, 2]>(x, w) b = ConvTranspose(a, t) y = Relu(b)
    g = Gemm<transA = 1>(v, q) h = MatMul(g, k) z = Relu(h)
}"""


def batch(size: int) -> tuple[ShapeRange, ...]:
    shapes = {"x": (size, 4, 8, 8), "v": (size, 6)}
    return tuple(
        ShapeRange(input=name, min=shape, opt=shape, max=shape)
        for name, shape in shapes.items()
    )


def test_products_are_counted_by_hand(tmp_path: Path) -> None:
    size = 5
    weights = {
        "w": models.normal(6, 2, 3, 3),
        "t": models.normal(6, 7, 2, 2),
        "q": models.normal(size, 10),
        "k": models.normal(10, 3),
    }
    graph = models.write(tmp_path / "m.onnx", TEXT, weights)
    assert count_macs(graph, batch(size)) == {
        "Conv_0": size * 6 * 3 * 3 * (2 * 3 * 3),
        "ConvTranspose_1": size * 6 * 3 * 3 * (7 * 2 * 2),
        "Gemm_3": 6 * 10 * size,
        "MatMul_4": 6 * 3 * 10,
    }
    assert set(count_macs(graph, batch(size + 1))) == {"Conv_0", "ConvTranspose_1"}


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("layout", [0, 1])
def test_every_gate_of_a_recurrent_node_counts_in_every_step_and_direction(
    operator: str, gates: int, layout: int, tmp_path: Path
) -> None:
    steps, size, inputs, hidden = 7, 3, 4, 8
    text = f"""g (float[T, N, {inputs}] x) => (float s) {{
        , s = {operator}<hidden_size = {hidden}, direction = "bidirectional",
            layout = {layout}>(x, w, r)
    }}"""
    weights = {
        "w": models.normal(2, gates * hidden, inputs),
        "r": models.normal(2, gates * hidden, hidden),
    }
    graph = models.write(tmp_path / "m.onnx", text, weights)
    shape = (steps, size, inputs)
    profile = (ShapeRange(input="x", min=shape, opt=shape, max=shape),)
    (count,) = count_macs(graph, profile).values()
    assert count == 2 * steps * size * gates * hidden * (inputs + hidden)


def test_pairs_change_no_count_and_are_told_apart(tmp_path: Path) -> None:
    graph = networks.network(tmp_path)
    result = networks.quantized(graph, tensorrt_rtx.SCHEME, networks.images(8))
    plain = count_macs(graph, ())
    assert count_macs(result, ()) == plain
    assert plain["Conv_0"] == 8 * 16 * 16 * 3 * 3 * 3
    pairs = models.operators(result.path)
    expected = pairs.count("QuantizeLinear") + pairs.count("DequantizeLinear")
    assert len(quantizer_names(result)) == expected > 0
    assert quantizer_names(graph) == frozenset()
