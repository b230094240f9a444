"""Graphs that builders die of or get wrong are refused before any build."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx
import pytest

from tests.backends import building, graphs
from trtbuild.backends import onnxruntime, preflight, tensorrt_rtx
from trtbuild.errors import BuildError

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.engine import Target

BACKENDS = {building.ORT: onnxruntime, building.rtx("sm_89"): tensorrt_rtx}


@pytest.mark.parametrize("target", BACKENDS, ids=str)
def test_a_constant_integer_division_by_zero_is_refused(target: Target, tmp_path: Path) -> None:
    graph = graphs.division(tmp_path / "m.onnx", 0)
    with pytest.raises(
        BuildError, match=r"'quotient' \(Div\) divides integers by the constant 0"
    ):
        BACKENDS[target].preflight(graph, target, "fp32")
    BACKENDS[target].preflight(graphs.division(tmp_path / "n.onnx", 2), target, "fp32")


@pytest.mark.parametrize("target", BACKENDS, ids=str)
def test_a_good_graph_passes(target: Target, tmp_path: Path) -> None:
    backend = BACKENDS[target]
    graph = graphs.residual(tmp_path / "m.onnx", backend.SCHEME)
    backend.preflight(graph, target, "int8")


def test_a_division_by_zero_in_a_constant_node_is_found(tmp_path: Path) -> None:
    graph = graphs.division(tmp_path / "m.onnx", 1)
    model = onnx.load(graph.path)
    del model.graph.initializer[1]
    node = onnx.helper.make_node("Constant", [], ["divisor"], name="c", value_ints=[0])
    model.graph.node.insert(0, node)
    onnx.save(model, graph.path)
    with pytest.raises(BuildError, match="'quotient'"):
        preflight.check(graph)


@pytest.mark.parametrize("size", [0, -5])
def test_a_size_that_is_not_positive_is_refused(size: int, tmp_path: Path) -> None:
    draw = graphs.Drawing()
    graph = draw.save(tmp_path / "m.onnx", draw.node("Neg", ["x"], "n"), (4, 8))
    model = onnx.load(graph.path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = size
    onnx.save(model, graph.path)
    with pytest.raises(BuildError, match=f"axis 1 of 'x' has size {size}"):
        preflight.check(graph)


def test_a_graph_that_is_not_valid_onnx_is_refused(tmp_path: Path) -> None:
    draw = graphs.Drawing()
    graph = draw.save(tmp_path / "m.onnx", draw.node("Neg", ["x"], "n"), (4,))
    model = onnx.load(graph.path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, graph.path)
    with pytest.raises(BuildError, match=r"not valid ONNX.*NoSuchOperator"):
        preflight.check(graph)


def test_a_file_without_nodes_is_refused(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    graph.path.write_bytes(b"")
    with pytest.raises(BuildError, match="no ONNX graph"):
        preflight.check(graph)


def test_a_chain_that_takes_hours_is_refused(tmp_path: Path) -> None:
    draw = graphs.Drawing()
    tensor = "x"
    for index in range(10_001):
        tensor = draw.node("Neg", [tensor], f"n{index}")
    graph = draw.save(tmp_path / "m.onnx", tensor, (4,))
    with pytest.raises(BuildError, match="more than 10000 nodes ends at 'n10000'"):
        preflight.check(graph)


def test_a_type_that_tensorrt_would_narrow_is_refused(tmp_path: Path) -> None:
    draw = graphs.Drawing()
    out = draw.node("Cast", ["x"], "wide", to=onnx.TensorProto.DOUBLE)
    graph = draw.save(tmp_path / "m.onnx", out, (4,))
    model = onnx.load(graph.path)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    onnx.save(model, graph.path)
    with pytest.raises(BuildError, match=r"'wide_out' has type double.*cast it"):
        tensorrt_rtx.preflight(graph, building.rtx("sm_89"), "fp32")


def test_an_asymmetric_int8_grid_is_refused(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", tensorrt_rtx.SCHEME)
    model = onnx.load(graph.path)
    for tensor in model.graph.initializer:
        if tensor.name == "zero_0":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(3, np.int8), "zero_0"))
    onnx.save(model, graph.path)
    with pytest.raises(BuildError, match=r"'q_x'.*zero point other than 0"):
        tensorrt_rtx.preflight(graph, building.rtx("sm_89"), "int8")


def test_a_computed_scale_is_refused(tmp_path: Path) -> None:
    draw = graphs.Drawing()
    scale = draw.node("ReduceMax", ["x"], "range", keepdims=0)
    codes = draw.node("QuantizeLinear", ["x", scale], "q", output_dtype=3)
    graph = draw.save(
        tmp_path / "m.onnx", draw.node("DequantizeLinear", [codes, scale], "dq"), (4,)
    )
    with pytest.raises(BuildError, match=r"'q'.*'range_out', which is computed"):
        tensorrt_rtx.preflight(graph, building.rtx("sm_89"), "int8")


def test_products_in_fp32_are_refused_for_turing(tmp_path: Path) -> None:
    draw = graphs.Drawing()
    weight = draw.constant("w", np.ones((8, 8), np.float32))
    graph = draw.save(tmp_path / "m.onnx", draw.node("MatMul", ["x", weight], "m"), ("b", 8))
    with pytest.raises(BuildError, match=r"'m'.*multiplies in fp32"):
        tensorrt_rtx.preflight(graph, building.rtx("sm_75"), "fp32")
    tensorrt_rtx.preflight(graph, building.rtx("sm_80"), "fp32")


def test_bfloat16_is_refused_for_turing(tmp_path: Path) -> None:
    draw = graphs.Drawing()
    narrow = draw.node("Cast", ["x"], "narrow", to=onnx.TensorProto.BFLOAT16)
    wide = draw.node("Cast", [draw.node("Neg", [narrow], "n")], "w", to=onnx.TensorProto.FLOAT)
    graph = draw.save(tmp_path / "m.onnx", wide, (4,))
    with pytest.raises(BuildError, match=r"'n'.*bfloat16"):
        tensorrt_rtx.preflight(graph, building.rtx("sm_75"), "bf16")


def test_schemes_say_what_each_backend_fuses() -> None:
    assert onnxruntime.SCHEME.activation == "uint8"
    assert tensorrt_rtx.SCHEME.activation == "int8"
    digests = {msgspec.json.encode(b.SCHEME) for b in (onnxruntime, tensorrt_rtx)}
    assert len(digests) == 2
