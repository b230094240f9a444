"""The layers of an ONNX Runtime engine, read from its optimized graph.

Optimizers keep the name of a node and add to it (``_token_3``, ``fused``), or name
the new node after the tensor that it computes (``relu_out_nchwc``), or name it freely and keep
its output tensor. From these anchors the nodes that were fused are found by following the
original graph; glue that the optimizer added (layout changes) covers no node.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import onnx

from trtbuild.engine import Layer, Layers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trtbuild.backends.staging import Staged
    from trtbuild.engine import Role

_STAGED = re.compile(r"onnx_node_\d+(?!\d)")
_ADDED = re.compile(r"(?:_nchwc|_token_\d+)+$")
_PREFIX = re.compile(r"^(?:Fused|Nhwc|QLinear|Q(?=Gemm))")

COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "GRU", "LSTM", "MatMul", "RNN"})
"""Operators with weights or products; recurrent ones hold the products of all their gates."""

_INT8_KINDS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
_FLOAT_KINDS = frozenset(
    {
        "Attention",
        "Conv",
        "ConvTranspose",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "GRU",
        "Gemm",
        "LSTM",
        "MatMul",
        "MatMulNBits",
        "MultiHeadAttention",
        "RNN",
    }
)

_PACKED_KIND = "MatMulNBits"
_INT4_BITS = 4

_REFORMATS = frozenset({"Cast", "ReorderInput", "ReorderOutput", "Transpose"})

_INT8_LEVEL = 4
"""The accuracy level at which MatMulNBits multiplies in INT8 (ONNX Runtime, contrib ops)."""

_CAST = "InsertedPrecisionFreeCast_"
"""What ONNX Runtime puts before the name of an FP16 tensor that it computes in FP32."""

_REWRITTEN = frozenset({"Conv", "FusedConv"})
"""As what ONNX Runtime also writes a batch normalization, or a scale and shift per channel: no
convolution that the model has, and nothing that can be quantized."""

_WORDS: Mapping[int, str] = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
    onnx.TensorProto.DOUBLE: "fp64",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
}


def read_layers(optimized: onnx.ModelProto, staged: Staged) -> Layers:
    """Return one layer per node of the ``optimized`` graph, with the user's nodes it covers."""
    types = _types(optimized.graph)
    covered = _Cover(staged).of(optimized.graph.node)
    interface = {value.name for value in (*optimized.graph.input, *optimized.graph.output)}
    layers = []
    for index, (node, names) in enumerate(zip(optimized.graph.node, covered, strict=True)):
        operators = {staged.nodes[name].operator for name in names}
        known = node.op_type in _INT8_KINDS or node.op_type in _FLOAT_KINDS
        compute = known and (node.op_type not in _REWRITTEN or bool(operators & COMPUTE))
        ordered = sorted(names, key=lambda name: _rank(staged.nodes[name].operator))
        role = _role(node, names) if interface.isdisjoint((*node.input, *node.output)) else ""
        layers.append(
            Layer(
                name=staged.original(node.name) or node.op_type,
                kind=node.op_type,
                precision=_precision(node, types),
                compute=compute,
                nodes=tuple(staged.nodes[name].name for name in ordered),
                weights="int4" if _packed_bits(node) == _INT4_BITS else "",
                engine_name=node.name or f"{node.op_type}_{index}",
                role=role,
                reads=_word(types, node.input) if role else "",
                writes=_word(types, node.output) if role else "",
            )
        )
    return Layers(layers=tuple(layers))


def _rank(operator: str) -> int:
    """Return the place of a node in its layer: compute first, Q/DQ last."""
    if operator in COMPUTE:
        return 0
    return 2 if operator in {"QuantizeLinear", "DequantizeLinear"} else 1


def _role(node: onnx.NodeProto, names: list[str]) -> Role:
    """Return what a node does beside the model; what the optimizer added covers no node."""
    if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
        return "quantize"
    return "reformat" if node.op_type in _REFORMATS and not names else ""


def _word(types: Mapping[str, int], names: Sequence[str]) -> str:
    """Return our word for the type of the first tensor."""
    kind = types.get(names[0], 0) if names else 0
    return _WORDS.get(kind, onnx.TensorProto.DataType.Name(kind).lower())


def _types(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the element type of each tensor, guessed where ONNX Runtime wrote none."""
    types: dict[str, int] = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    for node in graph.node:
        kind = types.get(node.input[0], onnx.TensorProto.FLOAT) if node.input else 0
        if node.op_type.startswith("QLinear") or node.op_type == "QuantizeLinear":
            kind = onnx.TensorProto.UINT8
        for name in node.output:
            types.setdefault(name, kind)
    return types


def _packed_bits(node: onnx.NodeProto) -> int:
    """Return how many bits each weight of a product has whose weights are packed, else 0."""
    if node.op_type != _PACKED_KIND:
        return 0
    return next((each.i for each in node.attribute if each.name == "bits"), _INT4_BITS)


def _rounds_activations(node: onnx.NodeProto) -> bool:
    """Tell whether a product of packed weights rounds its activations to INT8 as well."""
    level = next((each.i for each in node.attribute if each.name == "accuracy_level"), 0)
    return node.op_type == _PACKED_KIND and level == _INT8_LEVEL


def _precision(node: onnx.NodeProto, types: Mapping[str, int]) -> str:
    if _rounds_activations(node):
        return "int8"
    if node.op_type in _INT8_KINDS or node.op_type.startswith("QLinear"):
        return "int8"
    kinds = [types[name] for name in (*node.input, *node.output) if name in types]
    if node.op_type in _FLOAT_KINDS:
        kinds = [kind for kind in kinds if _WORDS.get(kind, "int8") != "int8"]
    if not kinds:
        return "fp32"
    name: str = onnx.TensorProto.DataType.Name(kinds[0])
    return _WORDS.get(kinds[0], name.lower())


class _Cover:
    """Finds the nodes of the staged graph that each node of an optimized graph computes."""

    def __init__(self, staged: Staged) -> None:
        self._nodes = {node.name: node for node in staged.model.graph.node}
        self._producer = {
            tensor: node.name for node in staged.model.graph.node for tensor in node.output
        }
        self._consumers: dict[str, list[str]] = {name: [] for name in self._nodes}
        for node in staged.model.graph.node:
            for tensor in node.input:
                if tensor in self._producer:
                    self._consumers[self._producer[tensor]].append(node.name)

    def of(self, optimized: Iterable[onnx.NodeProto]) -> list[list[str]]:
        """Return the staged names for each node of ``optimized``, in the graph's order."""
        kinds: list[str] = []
        owner: dict[str, int] = {}
        anchors: list[set[str]] = []
        for index, node in enumerate(optimized):
            kinds.append(_PREFIX.sub("", node.op_type))
            found = self._anchors(node)
            anchors.append(found)
            for name in found:
                owner.setdefault(name, index)
        self._grow_backward(owner, kinds, anchors)
        self._grow_forward(owner)
        covered: list[list[str]] = [[] for _ in kinds]
        for name, node in self._nodes.items():
            if name in owner:
                covered[owner[name]].append(name)
            elif node.op_type == "DequantizeLinear":
                readers = {owner[c] for c in self._consumers[name] if c in owner}
                for index in sorted(readers):
                    covered[index].append(name)
        return covered

    def _anchors(self, node: onnx.NodeProto) -> set[str]:
        outputs = (tensor.removeprefix(_CAST) for tensor in node.output)
        found = {self._producer[tensor] for tensor in outputs if tensor in self._producer}
        match = _STAGED.search(node.name)
        if match is not None and match[0] in self._nodes:
            found.add(match[0])
        named_after = _ADDED.sub("", node.name.removeprefix(_CAST))
        if named_after != node.name and named_after in self._producer:
            found.add(self._producer[named_after])
        return found

    def _grow_backward(
        self, owner: dict[str, int], kinds: list[str], anchors: list[set[str]]
    ) -> None:
        """Give a node to the fusion that is its only reader, down to the fusion's namesake."""
        complete = {
            index
            for index, found in enumerate(anchors)
            if any(self._nodes[name].op_type == kinds[index] for name in found)
        }
        for name in reversed(self._nodes):
            node = self._nodes[name]
            readers = {owner.get(reader, -1) for reader in self._consumers[name]}
            if name in owner or node.op_type == "DequantizeLinear" or len(readers) != 1:
                continue
            (index,) = readers
            if index >= 0 and index not in complete:
                owner[name] = index
                if node.op_type == kinds[index]:
                    complete.add(index)

    def _grow_forward(self, owner: dict[str, int]) -> None:
        """Give what nobody claimed (Relu, Add, ...) to what computes its last input."""
        for name, node in self._nodes.items():
            if name in owner or node.op_type == "DequantizeLinear" or node.op_type in COMPUTE:
                continue
            producers = [
                owner[self._producer[tensor]]
                for tensor in node.input
                if tensor in self._producer and self._producer[tensor] in owner
            ]
            if producers:
                owner[name] = max(producers)
