"""Packed weights in a graph, read back by ONNX's own reference implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from tests.pipeline import transformer
from trtbuild.backends import tensorrt_rtx
from trtbuild.graph.model import read_graph
from trtbuild.quantization.weight_only import Packing, pack, unpack

if TYPE_CHECKING:
    from pathlib import Path

    from tests.pipeline.models import Array
    from trtbuild.engine import Precision
    from trtbuild.graph import Graph


def reference(graph: Graph, x: Array) -> Array:
    """Return the one output, as ONNX's reference implementation computes it."""
    outputs = list(ReferenceEvaluator(str(graph.path)).run(None, {"x": x}))
    return np.asarray(outputs[0])


@pytest.mark.parametrize("precision", ["int4", "nvfp4", "mxfp4"])
def test_a_packed_graph_computes_what_its_unpacked_twin_does(
    precision: Precision, tmp_path: Path
) -> None:
    graph = read_graph(transformer.write(tmp_path / "model.onnx"))
    packing = Packing(scheme=tensorrt_rtx.WEIGHTS[precision], block=64)
    packed, done, left = pack(graph, packing, tmp_path / "packed.onnx")
    assert {item.node for item in done} == {"up", "down", "head"}
    assert left == ()
    onnx.checker.check_model(str(packed.path), full_check=True)
    twin = unpack(packed, tmp_path / "twin.onnx")
    x = transformer.inputs(8)
    expected = reference(packed, x)
    session = ort.InferenceSession(twin.path, providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": x})[0]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    original = reference(graph, x)
    noise = np.square(got - original).sum() / np.square(original).sum()
    assert 1e-4 < noise < 0.06


def test_what_is_not_packed_is_named_with_its_reason(tmp_path: Path) -> None:
    graph = read_graph(transformer.write(tmp_path / "model.onnx", hidden=100))
    packing = Packing(
        scheme=tensorrt_rtx.WEIGHTS["int4"], block=128, keep_float=frozenset({"head"})
    )
    _, done, left = pack(graph, packing, tmp_path / "packed.onnx")
    assert [(item.node, item.block) for item in done] == [("up", 64)]
    reasons = {item.node: item.reason for item in left}
    assert reasons["head"] == "asked for by keep_float"
    assert "100 inputs cannot be cut into blocks" in reasons["down"]
