"""What precision a graph asks of each product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.backends import graphs
from trtbuild.backends import onnxruntime, tensorrt_rtx
from trtbuild.graph.model import read_graph
from trtbuild.graph.operands import operand_precisions

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.backends.scheme import Scheme


@pytest.mark.parametrize(
    ("scheme", "asked"),
    [(None, "fp32"), (tensorrt_rtx.SCHEME, "int8"), (onnxruntime.SCHEME, "int8")],
)
def test_products_between_quantized_operands_are_asked_for_in_8_bits(
    scheme: Scheme | None, asked: str, tmp_path: Path
) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", scheme)
    found = operand_precisions(graph)
    convolutions = [n.name for n in onnx.load(graph.path).graph.node if n.op_type == "Conv"]
    assert found == dict.fromkeys(convolutions, asked)


def test_a_weight_alone_in_8_bits_is_computed_in_the_type_of_the_data(tmp_path: Path) -> None:
    """Weights are also found behind a change of shape, and only 8 bits of both sides count."""
    constants = [
        numpy_helper.from_array(np.ones((4, 4), np.int8), "w"),
        numpy_helper.from_array(np.asarray(0.5, np.float16), "s"),
        numpy_helper.from_array(np.asarray(0, np.int8), "z"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"], "dw"),
        helper.make_node("Transpose", ["wf"], ["wt"], "t"),
        helper.make_node("MatMul", ["x", "wt"], ["a"], "weight only"),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"], "qa"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "da"),
        helper.make_node("MatMul", ["d", "wt"], ["y"], "both"),
    ]
    half = TensorProto.FLOAT16
    inputs, outputs = (
        [helper.make_tensor_value_info(name, half, ["batch", 4])] for name in "xy"
    )
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    found = operand_precisions(read_graph(tmp_path / "m.onnx"))
    assert found == {"weight only": "fp16", "both": "int8"}
