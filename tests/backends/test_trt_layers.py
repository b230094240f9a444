"""Reading the builder's own list of layers, in the forms that small builds do not show."""

from __future__ import annotations

import pytest

from trtbuild.backends.staging import Node
from trtbuild.backends.trt_layers import read_layers
from trtbuild.errors import BuildError

NODES = {
    "onnx_node_0": Node(name="conv one", operator="Conv"),
    "onnx_node_1": Node(name="relu", operator="Relu"),
    "onnx_node_2": Node(name="product", operator="MatMul"),
    "onnx_node_10": Node(name="other", operator="Add"),
}
TAIL = "\n\nI/O Tensors:\n Name: x, IOMode: Input, DataType: Float\n\nEngine Metadata:\n"


def tensor(kind: str, dims: str = "-1,8") -> str:
    return (
        f" {{ Name: t, Dimensions: [{dims}], Strides: [8,1], StrideOrder: [1,0], "
        f"Datatype: {kind}, Format: (Linear) Row major linear format }}"
    )


def line(
    name: str, kind: str, inputs: tuple[str, ...], constants: tuple[str, ...], metadata: str
) -> str:
    joined = [",".join(tensors) for tensors in (inputs, constants)]
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [{joined[0]}], Constants: [{joined[1]}], "
        f"Outputs: [{tensor('Float')}], TacticName: , StreamId: 0, Metadata: {metadata}"
    )


def onnx_layers(*names: str) -> str:
    return "\x1f".join(f"[ONNX Layer: {name}]" for name in names)


ACTIVATION = tensor("Int8")
SCALE = tensor("Float", "1")
BIAS = tensor("Float", "1,8")
MATRIX = tensor("Int8", "8,8")
HALF_MATRIX = tensor("Half", "8,8")


@pytest.mark.parametrize(
    ("inputs", "constants", "precision"),
    [
        ((ACTIVATION,), (MATRIX, SCALE, BIAS), "int8"),
        ((ACTIVATION, tensor("Float")), (MATRIX, SCALE), "int8"),
        ((tensor("Half"),), (MATRIX,), "fp16"),
        ((ACTIVATION,), (HALF_MATRIX,), "fp16"),
        ((tensor("Float"),), (MATRIX, BIAS), "fp32"),
        ((ACTIVATION, ACTIVATION), (BIAS,), "int8"),
        ((tensor("Half"), tensor("Half")), (SCALE,), "fp16"),
        ((tensor("BFloat16"),), (tensor("BFloat16", "8,8"),), "bf16"),
        ((tensor("FP8"),), (tensor("FP8", "8,8"),), "fp8"),
        ((tensor("Half"),), (tensor("Int4", "8,8"),), "fp16"),
    ],
)
def test_a_product_has_the_type_of_its_wider_operand(
    inputs: tuple[str, ...], constants: tuple[str, ...], precision: str
) -> None:
    text = line("onnx_node_2_myl0_1", "gemm", inputs, constants, onnx_layers("onnx_node_2"))
    (layer,) = read_layers(f"Layers:\n{text}{TAIL}", NODES).layers
    assert layer.compute
    assert layer.precision == precision
    assert layer.nodes == ("product",)
    assert layer.name == "product_myl0_1"


def test_the_compute_node_stands_first_and_suffixes_are_cut() -> None:
    metadata = onnx_layers("onnx_node_1", "onnx_node_0") + "__gemm_from_conv1x1"
    text = line("onnx_node_10_myl0_1", "runtime_fusion", (SCALE,), (), metadata)
    (layer,) = read_layers(f"Layers:\n{text}{TAIL}", NODES).layers
    assert layer.nodes == ("conv one", "relu")
    assert layer.compute
    assert layer.name == "other_myl0_1"


def test_only_the_first_profile_counts() -> None:
    lines = [
        line(f"onnx_node_2{mark}_myl{profile}_1", "gemm", (ACTIVATION,), (MATRIX,), "")
        for profile, mark in enumerate(("", " [profile 1]", " [profile 2]"))
    ]
    layers = read_layers("Layers:\n" + "\n".join(lines) + TAIL, NODES)
    assert layers.precision_achieved == {"int8": 1}


def named(tensor_name: str) -> str:
    return tensor("Float").replace("Name: t", f"Name: {tensor_name}")


def test_segments_of_one_profile_have_any_numbers() -> None:
    names = ["onnx_node_0_myl1_0", "onnx_node_2_myl1_1", "onnx_node_2_myl4_0"]
    lines = [line(name, "gemm", (named("x"),), (), "") for name in names]
    layers = read_layers("Layers:\n" + "\n".join(lines) + TAIL, NODES)
    assert layers.precision_achieved == {"fp32": 3}


def test_a_segment_is_of_another_profile_where_only_its_input_says_so() -> None:
    lines = [
        line("__myl_Fc_myl1_0", "gemm", (named("x"),), (), ""),
        line("__myl_Fc_myl3_0", "gemm", (named("inner"),), (), ""),
        line("__myl_Fc_myl3_1", "gemm", (named("x [profile 1]"),), (), ""),
        line("__myl_Fc_myl4_0", "gemm", (named("inner"),), (), ""),
    ]
    layers = read_layers("Layers:\n" + "\n".join(lines) + TAIL, NODES)
    assert [layer.engine_name for layer in layers.layers] == ["__myl_Fc_myl1_0"]


@pytest.mark.parametrize("mark", ["", " [profile 1]"])
def test_a_copy_of_a_shape_computes_nothing(mark: str) -> None:
    copy = (
        f"Name: [ShapeHostToDeviceCopy 0]{mark}, LayerType: ShapeHostToDevice, Inputs: [], "
        "Outputs: [ { Name: (Unnamed Layer* 122) [LoopOutput][length], Location: Device, "
        "Dimensions: [], Datatype: Int32, Format: Format not available due to dynamic shapes "
        "}], ParameterType: ShapeH2D, shapeValues0: [-7], TacticValue: 0x0000000000000000, "
        "StreamId: 0, Metadata: "
    )
    product = line("__myl_Fc_myl1_0", "gemm", (named("x"),), (), "")
    layers = read_layers(f"Layers:\n{copy}\n{product}{TAIL}", NODES)
    assert [layer.engine_name for layer in layers.layers] == ["__myl_Fc_myl1_0"]


@pytest.mark.parametrize(
    ("name", "kind", "nodes", "compute"),
    [
        ("_gemm_mha_v2_myl0_1", "kgen", ("onnx_node_2",), True),
        ("__myl_Add_myl0_1", "kgen", ("onnx_node_2",), False),
        ("__myl_AddRelu_myl0_1", "runtime_fusion", ("onnx_node_1",), False),
        ("__myl_FcAddSigm_myl1_4", "runtime_fusion", (), True),
        ("__myl_AddFcx_myl1_4", "runtime_fusion", (), False),
        ("conv_myl0_1", "correlation", (), True),
        ("up_myl0_1", "deconv", (), True),
        ("wait_myl0_1", "wait", (), False),
    ],
)
def test_what_counts_as_compute(
    name: str, kind: str, nodes: tuple[str, ...], *, compute: bool
) -> None:
    text = line(name, kind, (tensor("Half"),), (), onnx_layers(*nodes) if nodes else "")
    (layer,) = read_layers(f"Layers:\n{text}{TAIL}", NODES).layers
    assert layer.compute is compute
    assert layer.kind == kind


@pytest.mark.parametrize(
    "text", ["Name: x, LayerType: gemm", line("n", "gemm", (" { Name: odd }",), (), "")]
)
def test_a_line_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(BuildError, match="cannot read"):
        read_layers(f"Layers:\n{text}{TAIL}", NODES)
