"""Reading TensorRT's engine inspector, as 8.6, 10.x and 11.x write it.

The texts follow what is public: layers that users of 8.5 to 10.x quote in NVIDIA/TensorRT
issues 2418, 4020 and 4397, the example engines of NVIDIA's engine explorer, and the migration
guide from 10.x to 11.x ("IEngineInspector"). None of them is a copy: names are as staged.
"""

from __future__ import annotations

import json
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from trtbuild.backends.staging import Node
from trtbuild.backends.trt_inspector import information, layers_of

if TYPE_CHECKING:
    from trtbuild.engine import Layer

NODES = {
    "onnx_node_0": Node(name="quantize x", operator="QuantizeLinear"),
    "onnx_node_1": Node(name="dequantize x", operator="DequantizeLinear"),
    "onnx_node_2": Node(name="conv", operator="Conv"),
    "onnx_node_3": Node(name="relu", operator="Relu"),
    "onnx_node_4": Node(name="quantize r", operator="QuantizeLinear"),
    "onnx_node_5": Node(name="dequantize r", operator="DequantizeLinear"),
    "onnx_node_12": Node(name="fc", operator="MatMul"),
    "onnx_node_13": Node(name="turn", operator="Transpose"),
}
INT8 = "Thirty-two wide channel vectorized row major Int8 format"


def tensor(
    name: str, told: str, *, split: bool = False, sizes: tuple[int, ...] = (8, 32)
) -> dict[str, Any]:
    found: dict[str, Any] = {"Name": name, "Location": "Device", "Dimensions": list(sizes)}
    if split:
        return found | {"Format": "(NHWC) Channel major format", "Datatype": told}
    return found | {"Format/Datatype": told}


def entry(
    name: str, kind: str, reads: object, writes: object, **more: object
) -> dict[str, object]:
    inputs, outputs = (each if isinstance(each, list) else [each] for each in (reads, writes))
    return {"Name": name, "LayerType": kind, "Inputs": inputs, "Outputs": outputs, **more}


def onnx(*names: str, between: str = "\x1e") -> str:
    return between.join(f"[ONNX Layer: {name}]" for name in names)


def text(*layers: object, **more: object) -> str:
    return json.dumps({"Layers": list(layers), **(more or {"Bindings": ["x", "y"]})})


CONV = "w + onnx_node_2 + onnx_node_3"
WEIGHTS = {"Type": "Int8", "Count": 9216}

V8 = text(
    entry(
        "onnx_node_0",
        "Reformat",
        tensor("x", "Row major linear FP32"),
        tensor("q", "Row major Int8 format"),
        Origin="QDQ",
    ),
    entry(
        CONV,
        "CaskConvolution",
        tensor("q", "Row major Int8 format"),
        tensor("r", "Channel major FP16 format where channel % 8 == 0"),
        Weights=WEIGHTS,
        Bias={"Type": "Float", "Count": 32},
        TacticName="sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32",
    ),
    entry(
        "Reformatting CopyNode for Input Tensor 0 to onnx_node_12",
        "Reformat",
        tensor("r", "Channel major FP16 format where channel % 8 == 0"),
        tensor("s", "Row major linear FP32"),
        Origin="REFORMAT",
    ),
    entry(
        "onnx_node_12",
        "MatrixMultiply",
        [tensor("s", "Row major linear FP32"), tensor("w2", "Row major linear FP32")],
        tensor("y", "Row major linear FP32"),
    ),
)
V10 = text(
    entry("x copy", "NoOp", tensor("x", "Half"), tensor("x'", "Half"), Metadata=""),
    entry(
        "onnx_node_2_myl0_1",
        "correlation",
        tensor("q", "Int8"),
        tensor("r", "Half"),
        Constants=[tensor("w", "Int8", sizes=(32, 288)), tensor("b", "Float", sizes=(32,))],
        Metadata=onnx("onnx_node_2", "onnx_node_3", between="\x1f"),
    ),
    entry(
        "__myl_MulMinMaxRounCast_myl0_2",
        "kgen",
        tensor("r", "Half"),
        tensor("q2", "Int8"),
        Metadata=onnx("onnx_node_4"),
    ),
    entry(
        "onnx_node_12_myl0_3", "gemm", tensor("q2", "Int8"), tensor("y", "Half"),
        Metadata=onnx("onnx_node_12"),
    ),
    entry(
        "onnx_node_12 [profile 1]_myl1_3", "gemm", tensor("q3", "Half"), tensor("y", "Half"),
        Metadata=onnx("onnx_node_12"),
    ),
)  # fmt: skip
V11 = text(
    entry(
        CONV,
        "CaskConvActPool",
        tensor("x", "Half", split=True),
        tensor("r", "Half", split=True),
        ConvWeights={"Type": "Half", "Count": 9216},
        Metadata=onnx("onnx_node_2", "onnx_node_3"),
    ),
    entry(
        "__myl_Tran_myl0_1",
        "kgen",
        tensor("r", "Half", split=True),
        tensor("t", "Half", split=True),
        Metadata="",
    ),
    entry(
        "__myl_FcAdd_myl0_2",
        "fusion",
        tensor("t", "BFloat16", split=True),
        tensor("y", "Float", split=True),
        Metadata=onnx("onnx_node_12"),
    ),
    **{"I/O Tensors": [{"Name": n, "IOMode": m} for n, m in (("x", "Input"), ("y", "Output"))]},
)


def by_name(found: str) -> dict[str, Layer]:
    layers = layers_of(found, NODES)
    assert not layers.unread
    return {layer.name: layer for layer in layers.layers}


def test_8_6_tells_types_in_phrases_weights_apart_and_nodes_in_names() -> None:
    found = by_name(V8)
    conv, fc = found["w + conv + relu"], found["fc"]
    assert (conv.precision, conv.compute, conv.nodes) == ("int8", True, ("conv", "relu"))
    assert (fc.precision, fc.compute, fc.nodes) == ("fp32", True, ("fc",))
    assert found["quantize x"].role == ""  # it converts an input of the engine
    moved = found["Reformatting CopyNode for Input Tensor 0 to fc"]
    assert (moved.role, moved.reads, moved.writes) == ("reformat", "fp16", "fp32")
    assert (moved.compute, moved.nodes) == (False, ())
    assert moved.moved_bytes == 8 * 32 * (2 + 4)


def test_10_tells_nodes_in_metadata_and_only_the_first_profile_counts() -> None:
    found = by_name(V10)
    assert list(found) == [
        "x copy",
        "conv_myl0_1",
        "__myl_MulMinMaxRounCast_myl0_2",
        "fc_myl0_3",
    ]
    assert found["conv_myl0_1"].nodes == ("conv", "relu")
    assert {layer.precision for layer in found.values() if layer.compute} == {"int8"}
    quantize = found["__myl_MulMinMaxRounCast_myl0_2"]
    assert (quantize.role, quantize.reads, quantize.writes) == ("quantize", "fp16", "int8")


def test_segments_of_the_first_profile_may_begin_with_any_number() -> None:
    product = ("gemm", tensor("q", "Half"), tensor("y", "Half"))
    later = ("gemm", tensor("q [profile 1]", "Half"), tensor("y", "Half"))
    metadata = onnx("onnx_node_12")
    assert list(
        by_name(
            text(
                entry("__myl_Fc_myl1_0", *product, Metadata=metadata),
                entry("__myl_Fc_myl3_0", *product, Metadata=metadata),
                entry("__myl_Fc_myl5_0", *product, Metadata=metadata),
                entry("__myl_Fc_myl5_1", *later, Metadata=metadata),
            )
        )
    ) == ["__myl_Fc_myl1_0", "__myl_Fc_myl3_0"]


def test_11_tells_layout_and_type_apart_and_io_tensors_as_objects() -> None:
    found = by_name(V11)
    assert found["w + conv + relu"].precision == "fp16"
    fused = found["__myl_FcAdd_myl0_2"]
    assert (fused.compute, fused.precision, fused.nodes) == (True, "bf16", ("fc",))
    assert found["__myl_Tran_myl0_1"].role == "reformat"


def test_an_opaque_layer_covers_what_no_other_does_and_its_precision_is_not_claimed() -> None:
    conv = entry(CONV, "CaskConvolution", tensor("x", INT8), tensor("r", INT8), Weights=WEIGHTS)
    rest = entry(
        "{ForeignNode[onnx_node_4...onnx_node_13]}", "Myelin", tensor("r", INT8),
        tensor("y", "Row major linear FP32"),
    )  # fmt: skip
    opaque = by_name(text(conv, rest))["{ForeignNode[quantize r...turn]}"]
    assert opaque.nodes[0] == "fc"
    assert "conv" not in opaque.nodes
    assert (opaque.compute, opaque.precision) == (True, "unknown")


def test_a_move_that_the_model_has_itself_is_no_reformat_and_open_sizes_have_no_bytes() -> None:
    reads, writes = (tensor(name, "Half", sizes=(-1, 32)) for name in "tr")
    own = entry("__myl_Tran_myl0_1", "kgen", reads, writes, Metadata=onnx("onnx_node_13"))
    added = entry("__myl_Tran_myl0_2", "kgen", reads, writes, Metadata="")
    fc = entry("onnx_node_12", "gemm", reads, writes, Metadata=onnx("onnx_node_12"))
    found = by_name(text(own, added, fc))
    assert [layer.role for layer in found.values()] == ["", "reformat", ""]
    assert [layer.moved_bytes for layer in found.values()] == [None, None, None]


def test_types_that_open_shapes_hide_are_unknown_not_guessed() -> None:
    hidden = tensor("q", "N/A due to dynamic shapes", sizes=(-1, 32))
    (layer,) = by_name(
        text(entry("onnx_node_2", "CaskConvolution", hidden, hidden, Weights=WEIGHTS))
    ).values()
    assert layer.precision == "unknown"


def test_a_kind_that_is_not_known_computes_the_products_that_no_other_layer_does() -> None:
    half = tensor("t", "Half")
    metadata = onnx("onnx_node_2")
    new = entry("n", "BrandNewKernel", half, half, Metadata=metadata)
    beside = entry("onnx_node_2", "CaskConvolution", half, half, Metadata=metadata)
    pointwise = entry("p", "PointWiseV2", half, half, Metadata=metadata)
    assert by_name(text(new))["n"].compute
    found = by_name(text(beside, new, pointwise))
    assert [layer.compute for layer in found.values()] == [True, False, False]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ("", "gave no JSON"),
        ('{"Layers": [', "gave no JSON"),
        ("[" * 100_000, "gave no JSON"),
        ("[]", "no list of layers"),
        ('{"Bindings": ["x"]}', "no list of layers"),
        ('{"Layers": {"Name": "x"}}', "no list of layers"),
        ('{"Layers": []}', "no list of layers"),
        (text("onnx_node_2", "onnx_node_12"), "names of its layers alone"),
        (text(entry("a", "Convolution", [], []), "onnx_node_2"), "'onnx_node_2', no object"),
        (text({"Name": "onnx_node_2"}), "no name or no type"),
        (text(entry("a", "Convolution", [7], [])), "a tensor of layer 'a'"),
        (text({"Name": "a", "LayerType": "Gemm", "Inputs": 3}), "a list is expected"),
        (text(entry("a", "Gemm", [], [], Weights="Half")), "not a type and a count"),
        (text(entry("a", "Tensor9000", [], [])), "none of its layers (Tensor9000)"),
    ],
)
def test_what_is_not_understood_gives_a_reason_and_no_table(found: str, reason: str) -> None:
    layers = layers_of(found, NODES)
    assert layers.layers == ()
    assert reason in layers.unread


def test_control_characters_that_are_not_escaped_do_no_harm() -> None:
    raw = V10.replace("\\u001f", "\x1f").replace("\\u001e", "\x1e")
    assert raw != V10
    assert layers_of(raw, NODES) == layers_of(V10, NODES)


def test_an_engine_without_an_inspector_has_no_layers_and_says_so() -> None:
    engine = SimpleNamespace(create_engine_inspector=lambda: None)
    found = layers_of(information(ModuleType("trt"), engine), NODES)
    assert found.layers == ()
    assert "gave no JSON" in found.unread
