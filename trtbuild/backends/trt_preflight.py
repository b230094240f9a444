"""Checks of a graph for TensorRT: Q/DQ form, operators and types that it gets wrong or lacks.

The facts are of TensorRT-RTX 1.7.1, each tried on a graph that has nothing else wrong. TensorRT
proper has more: operators that are plug-ins, uint8 inputs, products in FP32 on sm_75, and FP4
from sm_100 on (support matrix 11.4); its parser refuses the rest by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from trtbuild.backends import preflight, staging
from trtbuild.errors import BuildError
from trtbuild.graph.model import files_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtbuild.engine import Precision, Target
    from trtbuild.graph import Graph

_OUTSIDE = "keep it outside of the engine, behind its outputs"
_QUANTIZED = "quantize with Q/DQ pairs, as trtbuild does, instead of integer operators"
_DECOMPOSE = "export it as the basic operators that it is made of"

UNSUPPORTED: Mapping[str, str] = {
    **dict.fromkeys(
        ("NonMaxSuppression", "NonZero", "RoiAlign", "Unique", "Compress"), _OUTSIDE
    ),
    **dict.fromkeys(
        (
            "ConvInteger",
            "DynamicQuantizeLinear",
            "MatMulInteger",
            "QLinearConv",
            "QLinearMatMul",
        ),
        _QUANTIZED,
    ),
    **dict.fromkeys(
        (
            "AffineGrid",
            "Bernoulli",
            "BitCast",
            "BitShift",
            "BitwiseAnd",
            "BitwiseNot",
            "BitwiseOr",
            "BitwiseXor",
            "CenterCropPad",
            "Col2Im",
            "DFT",
            "DeformConv",
            "Det",
            "MaxUnpool",
            "MelWeightMatrix",
            "NegativeLogLikelihoodLoss",
            "OneHot",
            "SequenceInsert",
            "SequenceMap",
            "SoftmaxCrossEntropyLoss",
            "SplitToSequence",
        ),
        _DECOMPOSE,
    ),
    **dict.fromkeys(
        ("ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit"),
        _OUTSIDE,
    ),
    "TfIdfVectorizer": _OUTSIDE,
}
"""Operators that no test model of ONNX could be built with, and what to do instead."""

_IO_TYPES = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.INT32,
    onnx.TensorProto.INT64,
    onnx.TensorProto.BOOL,
}

_FP8_ARCHS = ("sm_89", "sm_120", "sm_121")
_FP4_ARCHS = ("sm_120", "sm_121")

_TYPE_ARCHS: Mapping[int, tuple[str, ...]] = {
    onnx.TensorProto.FLOAT8E4M3FN: _FP8_ARCHS,
    onnx.TensorProto.INT4: ("sm_80", "sm_86", *_FP8_ARCHS),
    onnx.TensorProto.FLOAT4E2M1: _FP4_ARCHS,
    onnx.TensorProto.FLOAT8E5M2: (),
    onnx.TensorProto.UINT4: (),
    getattr(onnx.TensorProto, "FLOAT8E8M0", -1): (),
}
"""The architectures whose engines have constants of these types; for none, the parser refuses
them ("cannot be imported into TensorRT"). E8M0 came to onnx with 1.20."""

_IN_TENSORRT = frozenset({"DeformConv", "NonMaxSuppression", "NonZero", "OneHot", "RoiAlign"})
"""Of the unsupported those that the parser of TensorRT 10 has (onnx-tensorrt, operators.md)."""

_SINCE: Mapping[int, int] = {
    onnx.TensorProto.FLOAT8E4M3FN: 89,
    onnx.TensorProto.INT4: 80,
    onnx.TensorProto.FLOAT4E2M1: 100,
}
_MIB = 1 << 20

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_PRODUCTS = frozenset({"Gemm", "MatMul"})


def check(graph: Graph, target: Target, precision: Precision) -> None:
    """Refuse ``graph`` if its TensorRT would refuse it, compute something else, or die of it.

    Raises:
        BuildError: the message names the node, what was expected and what to do.
    """
    model = preflight.check(graph)
    _Check(graph, model, target).run(precision)


def check_memory(graph: Graph, target: Target, device_bytes: int) -> None:
    """Refuse a model whose weights do not fit into a GPU of so many bytes, 0 for unknown.

    Raises:
        BuildError: the message says what there is and what is needed.
    """
    weights = sum(path.stat().st_size for path in files_of(graph.path))
    if device_bytes and weights > device_bytes:
        raise BuildError(
            f"{graph.path}: {target}: the weights take {weights // _MIB} MiB, the GPU has "
            f"{device_bytes // _MIB} MiB: ask for fp16, int8 or int4, or build on a larger GPU"
        )


class _Check:
    """The checks of one model; holds what they all look up."""

    def __init__(self, graph: Graph, model: onnx.ModelProto, target: Target) -> None:
        self._graph = graph
        self._model = model
        self._target = target
        self._is_rtx = target.backend == "tensorrt-rtx"
        self._constants = preflight.constants(model)
        self._producers = {
            name: node for node in model.graph.node for name in node.output if name
        }

    def run(self, precision: Precision) -> None:
        self._check_io()
        self._check_types()
        for node in staging.all_nodes(self._model):
            known = not self._is_rtx and node.op_type in _IN_TENSORRT
            if node.domain in {"", "ai.onnx"} and node.op_type in UNSUPPORTED and not known:
                raise self._error(node, f"is not supported: {UNSUPPORTED[node.op_type]}")
            if node.op_type in _QDQ:
                self._check_quantization(node)
        if self._target.arch == "sm_75" and self._is_rtx:
            self._check_turing(precision)

    def _error(self, node: onnx.NodeProto, text: str) -> BuildError:
        return BuildError(
            f"{self._graph.path}: {self._target}: node {staging.user_name(node)!r} "
            f"({node.op_type}) {text}"
        )

    def _check_io(self) -> None:
        values = [
            value for value in self._model.graph.input if value.name not in self._constants
        ]
        for value in (*values, *self._model.graph.output):
            kind = value.type.tensor_type.elem_type
            if kind == onnx.TensorProto.UINT8 and not self._is_rtx:
                continue
            if kind not in _IO_TYPES:
                word = onnx.TensorProto.DataType.Name(kind).lower()
                message = (
                    f"{self._graph.path}: {self._target}: {value.name!r} has type {word}: "
                    "expected float, float16, bfloat16, int32, int64 or bool; cast it in the "
                    "model"
                )
                raise BuildError(message)

    def _check_quantization(self, node: onnx.NodeProto) -> None:
        for name in node.input[1:]:
            if name and name not in self._constants and not self._is_decoded(name):
                raise self._error(
                    node, f"takes {name!r}, which is computed: make it a constant"
                )
        if len(node.input) > 2 and node.input[2]:  # noqa: PLR2004  input 2 is the zero point
            self._check_zero_point(node, self._constants[node.input[2]])
        weight = self._constants.get(node.input[0])
        if weight is not None and weight.data_type == onnx.TensorProto.INT32:
            raise self._error(
                node,
                f"dequantizes the INT32 constant {node.input[0]!r}: leave biases in floating "
                "point",
            )
        if weight is None and not self._comes_from_constant(node):
            scale = self._constants.get(node.input[1])
            if scale is None:
                raise self._error(node, f"takes {node.input[1]!r}, which is computed")
            if sum(scale.dims) > len(scale.dims):
                raise self._error(
                    node,
                    f"has {list(scale.dims)} scales for an activation, which would run in "
                    "float without a warning: give one scale per tensor",
                )

    def _is_decoded(self, name: str) -> bool:
        """Tell whether a tensor is dequantized from constants, as the scales of NVFP4 are."""
        producer = self._producers.get(name)
        return (
            producer is not None
            and producer.op_type == "DequantizeLinear"
            and all(each in self._constants for each in producer.input)
        )

    def _check_types(self) -> None:
        """Refuse constants of types that the parser or the architecture lacks."""
        for tensor in self._model.graph.initializer:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
            archs = _TYPE_ARCHS.get(tensor.data_type, (self._target.arch,))
            if not self._is_rtx and tensor.data_type in _SINCE:
                since = _SINCE[tensor.data_type]
                here = int(self._target.arch.removeprefix("sm_")) >= since
                archs = (self._target.arch,) if here else (f"sm_{since} and newer",)
            if self._target.arch not in archs:
                where = (
                    f"compute with it on {', '.join(archs)}" if archs else "has no such type"
                )
                raise BuildError(
                    f"{self._graph.path}: {self._target}: constant {tensor.name!r} has type "
                    f"{kind}: its engines {where}. Quantize to another format"
                )

    def _comes_from_constant(self, node: onnx.NodeProto) -> bool:
        producer = self._producers.get(node.input[0])
        return producer is not None and producer.input[0] in self._constants

    def _check_zero_point(self, node: onnx.NodeProto, zero_point: onnx.TensorProto) -> None:
        if zero_point.data_type == onnx.TensorProto.UINT8:
            raise self._error(
                node,
                "has a uint8 zero point, which would be read as int8 and clip at 127: "
                "quantize symmetrically to int8",
            )
        if zero_point.data_type != onnx.TensorProto.INT8:
            return
        values = preflight.array_of(zero_point)
        if values is not None and values.any():
            raise self._error(node, "has a zero point other than 0: quantize symmetrically")

    def _check_turing(self, precision: Precision) -> None:
        """Refuse what sm_75 lacks: BF16, products in FP32, convolutions in INT8."""
        other = "build for sm_80 or newer"
        for node in self._model.graph.node:
            kinds = {self._type_of(name) for name in node.input if name}
            if onnx.TensorProto.BFLOAT16 in kinds:
                raise self._error(
                    node, f"has bfloat16, which sm_75 lacks: use fp16, or {other}"
                )
            if node.op_type in _PRODUCTS and onnx.TensorProto.FLOAT in kinds:
                raise self._error(
                    node, f"multiplies in fp32, which sm_75 refuses: use fp16, or {other}"
                )
            first = self._producers.get(node.input[0]) if node.input else None
            quantized = first is not None and first.op_type == "DequantizeLinear"
            if precision == "int8" and node.op_type == "Conv" and quantized:
                raise self._error(
                    node, f"is quantized, and sm_75 computes it in float: use fp16, or {other}"
                )

    def _type_of(self, name: str) -> int:
        """Return the element type of a tensor, 0 where it is not written in the file."""
        if name in self._constants:
            return self._constants[name].data_type
        producer = self._producers.get(name)
        if producer is None:
            values = {value.name: value for value in self._model.graph.input}
            return values[name].type.tensor_type.elem_type if name in values else 0
        if producer.op_type == "Cast":
            return next((a.i for a in producer.attribute if a.name == "to"), 0)
        if producer.op_type == "DequantizeLinear":
            return self._type_of(producer.input[1])
        infos = {value.name: value for value in self._model.graph.value_info}
        return infos[name].type.tensor_type.elem_type if name in infos else 0
