"""Count the multiply-accumulates of each compute node, for shares and weights of layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx

from trtbuild.errors import BuildError
from trtbuild.graph.structure import load_without_weights

if TYPE_CHECKING:
    from trtbuild.engine import ShapeRange
    from trtbuild.graph import Graph

_RECURRENT = ("GRU", "LSTM", "RNN")

COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul", *_RECURRENT)
"""Operators that multiply and accumulate; what :func:`count_macs` counts."""


def count_macs(graph: Graph, shapes: tuple[ShapeRange, ...]) -> dict[str, int]:
    """Return multiply-accumulates of one call by node name, at the ``opt`` shapes.

    A dynamic axis without a profile counts as 1. Nodes whose shapes inference cannot tell, or
    that the shapes contradict, are left out.

    Raises:
        BuildError: inference fails altogether.
    """
    proto = load_without_weights(graph.path)
    chosen = {item.input: item.opt for item in shapes}
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        wanted = chosen.get(value.name, ())
        for axis, dim in enumerate(dims):
            if not dim.HasField("dim_value"):
                dim.dim_value = wanted[axis] if axis < len(wanted) else 1
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise BuildError(f"{graph.path}: shapes do not fit the graph: {error}") from error
    known = _shapes(inferred)
    macs = {node.name: _macs(node, known) for node in inferred.graph.node}
    return {name: count for name, count in macs.items() if count is not None}


def quantizer_names(graph: Graph) -> frozenset[str]:
    """Return the names of the QuantizeLinear and DequantizeLinear nodes of a graph."""
    proto = load_without_weights(graph.path)
    kinds = ("QuantizeLinear", "DequantizeLinear")
    return frozenset(node.name for node in proto.graph.node if node.op_type in kinds)


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    known = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        has_shape = value.type.tensor_type.HasField("shape")
        if has_shape and all(dim.HasField("dim_value") for dim in dims):
            known[value.name] = tuple(dim.dim_value for dim in dims)
    return known


def _macs(node: onnx.NodeProto, known: dict[str, tuple[int, ...]]) -> int | None:
    if node.op_type not in COMPUTE:
        return None
    if node.op_type in _RECURRENT:
        return _recurrent(node, known)
    names = (node.input[0], node.input[1], node.output[0])
    if any(name not in known for name in names):
        return None
    data, weight, result = (known[name] for name in names)
    if node.op_type == "Conv":
        return math.prod(result) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(data) * math.prod(weight[1:])
    attributes = {a.name: a.i for a in node.attribute}
    inner = data[-2] if node.op_type == "Gemm" and attributes.get("transA") else data[-1]
    return math.prod(result) * inner


def _recurrent(node: onnx.NodeProto, known: dict[str, tuple[int, ...]]) -> int | None:
    """Count the products of data and state with their weights, in every step.

    Data is [steps, batch, inputs] or, by ``layout``, [batch, steps, inputs]; the weights of the
    gates are [directions, gates * hidden, inputs] and [directions, gates * hidden, hidden].
    """
    shapes = [known.get(name) for name in node.input[:3]]
    data, *weights = (shape for shape in shapes if shape is not None)
    if len(weights) < 2:  # noqa: PLR2004  those of the data and of the state
        return None
    return math.prod(data[:2]) * sum(math.prod(weight) for weight in weights)
