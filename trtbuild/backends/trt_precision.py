"""How TensorRT is made to compute in the types of the graph, in every version.

From 9 on a network can be strongly typed: that flag is all. TensorRT 8.6 chooses types by
itself from those that flags allow, so it gets the flags that the graph needs, the order to
obey, and the graph's type for each layer.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import onnx

from trtbuild.graph.content import subgraphs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from trtbuild.backends.trt_config import Settings

TYPED = "STRONGLY_TYPED"

_FLOAT = onnx.TensorProto.FLOAT
_FLOATS: Mapping[int, str] = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF"}
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_FREE = (*_QDQ, "Cast", "Constant", "ConstantOfShape", "If", "Loop", "Scan", "Shape", "Size")
"""Operators whose layers have their type from what they are."""

_FREE_LAYERS = ("CAST", "CONSTANT", "DEQUANTIZE", "QUANTIZE", "SHAPE")
_STAGED = re.compile(r"onnx_node_\d+")

_NEEDED: Mapping[int, str] = {
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.FLOAT8E4M3FN: "FP8",
    onnx.TensorProto.INT4: "INT4",
    onnx.TensorProto.FLOAT4E2M1: "FP4",
}


def network_flags(trt: Any) -> int:  # noqa: ANN401  untyped bindings
    """Return the bits for ``create_network``: strongly typed, explicit batch, where they exist.

    The same name has another bit in 10 than in 11, and 11 has only explicit batches.
    """
    known = trt.NetworkDefinitionCreationFlag.__members__
    return sum(1 << int(known[name]) for name in (TYPED, "EXPLICIT_BATCH") if name in known)


def is_typed(trt: Any) -> bool:  # noqa: ANN401  untyped bindings
    """Tell whether this version has strongly typed networks."""
    return TYPED in trt.NetworkDefinitionCreationFlag.__members__


def lacking(model: onnx.ModelProto, flags: Iterable[str]) -> tuple[str, ...]:
    """Return the types of ``model`` that a weakly typed version does not compute in.

    ``flags`` are the names of its builder flags. FP8's was there before its kernels.
    """
    usable = set(flags) - {"FP8"}
    types = set(_all_types(model))
    return tuple(name for code, name in _NEEDED.items() if code in types and name not in usable)


def unreadable_scale(model: onnx.ModelProto) -> str:
    """Return the name of a Q/DQ node whose scale is not float32, or an empty string.

    The parser of 8.6 reads scales as float32, whatever type they have (onnx-tensorrt 8.6,
    ``QuantizeLinear`` and ``DequantizeLinear`` in ``builtin_op_importers.cpp``).
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    for graph in _graphs(inferred.graph):
        types = _types(inferred, graph)
        for node in graph.node:
            if node.op_type in _QDQ and types.get(node.input[1], _FLOAT) != _FLOAT:
                return str(node.name)
    return ""


def flags_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the builder flags that let a weakly typed version compute as ``model`` says."""
    has_half = onnx.TensorProto.FLOAT16 in set(_all_types(model))
    has_pairs = any(
        node.op_type in _QDQ for graph in _graphs(model.graph) for node in graph.node
    )
    wanted = {"FP16": has_half, "INT8": has_pairs, "OBEY_PRECISION_CONSTRAINTS": True}
    return tuple(name for name, needed in wanted.items() if needed)


def types_of_nodes(model: onnx.ModelProto) -> dict[str, str]:
    """Return ``FLOAT`` or ``HALF`` by the name of each node whose layers must compute in it.

    Left out are nodes that compute integers, that have their type by what they are, and the
    neighbors of Q/DQ, which TensorRT fuses with it by its own rules: where a pair takes a
    product into INT8 an order to compute in float would contradict it.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    found: dict[str, str] = {}
    for graph in _graphs(inferred.graph):
        types = _types(inferred, graph)
        pairs = [node for node in graph.node if node.op_type in _QDQ]
        borders = {name for node in pairs for name in (*node.input[:1], *node.output)}
        for node in graph.node:
            kinds = [_FLOATS[types[n]] for n in node.output if types.get(n) in _FLOATS]
            touches = borders.intersection(node.input) or borders.intersection(node.output)
            if kinds and not touches and node.op_type not in _FREE:
                found[node.name] = kinds[0]
    return found


def obey(trt: Any, network: Any, settings: Settings, model: onnx.ModelProto) -> None:  # noqa: ANN401  untyped bindings
    """Let a weakly typed network compute in the types of ``model``, of which it was parsed.

    Raises:
        BuildError: TensorRT refuses a type for a layer.
    """
    for name in flags_of(model):
        settings.flag(name.lower(), name, wanted=True)
    types = types_of_nodes(model)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        word = _type_of(layer, types)
        if word and layer.type.name not in _FREE_LAYERS:
            _constrain(trt, layer, trt.DataType.__members__[word], settings)


def _type_of(layer: Any, types: Mapping[str, str]) -> str:  # noqa: ANN401  untyped bindings
    match = _STAGED.search(f"{layer.name} {layer.metadata}")
    return types.get(match[0], "") if match else ""


def _constrain(trt: Any, layer: Any, kind: Any, settings: Settings) -> None:  # noqa: ANN401  untyped bindings
    """Set the type that a layer computes in and that of its outputs, shapes left alone."""
    floats = [
        index
        for index in range(layer.num_outputs)
        if layer.get_output(index).dtype in (trt.DataType.FLOAT, trt.DataType.HALF)
        and not layer.get_output(index).is_shape_tensor
    ]
    if not floats:
        return
    settings.take(
        f"the type of {layer.name}",
        kind,
        lambda value: setattr(layer, "precision", value),
        lambda: layer.precision,
    )
    for index in floats:
        _constrain_output(layer, index, kind, settings)


def _constrain_output(layer: Any, index: int, kind: Any, settings: Settings) -> None:  # noqa: ANN401  untyped bindings
    settings.take(
        f"the type of output {index} of {layer.name}",
        kind,
        lambda value: layer.set_output_type(index, value),
        lambda: layer.get_output_type(index),
    )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _graphs(inner)


def _types(model: onnx.ModelProto, graph: onnx.GraphProto) -> dict[str, int]:
    """Return element types by tensor: the main graph's, then those of a graph inside of it."""
    known: dict[str, int] = {}
    for each in (model.graph, graph):
        for value in (*each.input, *each.value_info, *each.output):
            known[value.name] = value.type.tensor_type.elem_type
        known.update({tensor.name: tensor.data_type for tensor in each.initializer})
    return known


def _all_types(model: onnx.ModelProto) -> Iterator[int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    for graph in _graphs(inferred.graph):
        yield from _types(inferred, graph).values()
