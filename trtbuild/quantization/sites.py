"""Find activations whose channels can trade scale with the weights that read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Collection

_HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool")
"""Operators that keep channels apart and for which f(s x) = s f(x) for every s > 0. Clip is not
one of them: its bounds would have to be scaled per channel, and no runtime fuses that."""

_NORMS = ("LayerNormalization", "RMSNormalization")
"""Their second input is a scale and their third, where there is one, an offset."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """One activation, and all that must change when channel ``c`` of it is divided by s[c].

    ``axis`` is the axis of its channels, of ``channels`` in all. ``readers`` are the nodes
    whose weight takes the factor instead. ``makers`` are the constants (node, index of the
    input, axis of the constant) that are divided so that the activation comes out scaled; none
    where no constant can: there a multiplication has to be added.
    """

    tensor: ir.Value
    axis: int
    channels: int
    readers: tuple[ir.Node, ...]
    makers: tuple[tuple[ir.Node, int, int], ...]


def product_sites(model: ir.Model, nodes: Collection[str]) -> tuple[Site, ...]:
    """Return the inputs of the matrix products with constant weights among ``nodes``.

    Channels are the last axis. Where something else reads the activation too, as the residual
    branch behind a LayerNormalization does, it has no makers.
    """
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        if node.name in nodes and _is_product(node) and node.inputs[0] is not None:
            found.setdefault(node.inputs[0], []).append(node)
    return tuple(
        Site(
            tensor=value,
            axis=-1,
            channels=_rows(readers[0]),
            readers=tuple(readers),
            makers=_makers(value, -1, readers),
        )
        for value, readers in found.items()
    )


def convolution_sites(model: ir.Model, nodes: Collection[str]) -> tuple[Site, ...]:
    """Return the activations that only convolutions among ``nodes`` read and constants scale.

    Channels are axis 1, and between the constants and the activation are only operators that
    let a positive factor pass.
    """
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        if node.name in nodes and node.op_type == "Conv" and node.inputs[0] is not None:
            found.setdefault(node.inputs[0], []).append(node)
    sites = []
    for value, readers in found.items():
        makers = _makers(value, 1, readers)
        if makers:
            channels = _shape(readers[0])[1] * readers[0].attributes.get_int("group", 1)
            sites.append(
                Site(
                    tensor=value,
                    axis=1,
                    channels=channels,
                    readers=tuple(readers),
                    makers=makers,
                )
            )
    return tuple(sites)


def _is_product(node: ir.Node) -> bool:
    if node.op_type not in {"MatMul", "Gemm"} or node.attributes.get_int("transA", 0) != 0:
        return False
    weight = node.inputs[1]
    return weight is not None and weight.const_value is not None and len(_shape(node)) == 2  # noqa: PLR2004  a matrix


def _shape(node: ir.Node) -> tuple[int, ...]:
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        raise ValueError(f"{node.name} has no constant weight")
    return tuple(weight.const_value.numpy().shape)


def _rows(node: ir.Node) -> int:
    return _shape(node)[1 if node.attributes.get_int("transB", 0) else 0]


Makers = tuple[tuple[ir.Node, int, int], ...]


def _makers(value: ir.Value, axis: int, readers: list[ir.Node]) -> Makers:
    """Return the constants to divide, none if there are none or others read ``value``."""
    uses = [(use.node, use.idx) for use in value.uses()]
    if value.is_graph_output() or {node for node, _ in uses} != set(readers):
        return ()
    return _behind(value, axis) or ()


def _behind(value: ir.Value, axis: int) -> Makers | None:
    """Return the constants that scale ``value``, None if it cannot be scaled by constants."""
    node = value.producer()
    if node is None:
        return None
    if node.op_type in _HOMOGENEOUS:
        source = node.inputs[0]
        return _alone(source, axis) if source is not None else None
    if node.op_type in _NORMS and axis == -1 and _last_axis(node):
        indices = [i for i in (1, 2) if i < len(node.inputs) and node.inputs[i] is not None]
        return _constants(node, tuple((i, 0) for i in indices))
    if node.op_type in {"Mul", "Add"}:
        return _elementwise(node, axis)
    return _layer(node, axis)


def _alone(value: ir.Value, axis: int) -> Makers | None:
    """Return what scales ``value``, None where more than one node reads it."""
    if len(value.uses()) != 1 or value.is_graph_output():
        return None
    return _behind(value, axis)


def _layer(node: ir.Node, axis: int) -> Makers | None:
    """Return weight and bias of a layer whose output channels lie along ``axis``."""
    if node.op_type == "Conv" and axis == 1:
        wanted = [(1, 0), (2, 0)]
    elif node.op_type in {"MatMul", "Gemm"} and axis == -1 and _is_product(node):
        wanted = [(1, 0 if node.attributes.get_int("transB", 0) else 1), (2, -1)]
    else:
        return None
    given = [(i, a) for i, a in wanted if i < len(node.inputs) and node.inputs[i] is not None]
    return _constants(node, tuple(given))


def _elementwise(node: ir.Node, axis: int) -> Makers | None:
    """Return what scales a product or sum: all terms of a sum, one factor of a product."""
    for data, index in ((node.inputs[0], 1), (node.inputs[1], 0)):
        constant = node.inputs[index]
        if constant is None or data is None or constant.const_value is None:
            continue
        own = _constants(node, ((index, axis),)) if _per_channel(node, index, axis) else None
        if node.op_type == "Mul" or own is None:
            return own
        rest = _alone(data, axis)
        return (*own, *rest) if rest else None
    if node.op_type == "Add":
        return None
    for data in reversed(node.inputs):
        found = _alone(data, axis) if data is not None else None
        if found:
            return found
    return None


def _per_channel(node: ir.Node, index: int, axis: int) -> bool:
    """Tell whether an operand has one number per channel of the node's output."""
    constant, result = node.inputs[index], node.outputs[0]
    if constant is None or constant.const_value is None or result.shape is None:
        return False
    shape, rank = tuple(constant.const_value.shape), len(result.shape)
    channels = result.shape[axis]
    padded = (1,) * (rank - len(shape)) + shape
    expected = [1] * rank
    if not isinstance(channels, int):
        return False
    expected[axis] = channels
    return len(padded) == rank and list(padded) == expected


def _constants(node: ir.Node, places: tuple[tuple[int, int], ...]) -> Makers | None:
    """Return the places with their node if all of them hold float32 constants."""
    values = [node.inputs[index] for index, _ in places]
    known = all(
        value is not None
        and value.const_value is not None
        and value.const_value.dtype == ir.DataType.FLOAT
        for value in values
    )
    return tuple((node, index, axis) for index, axis in places) if known and places else None


def _last_axis(norm: ir.Node) -> bool:
    """Tell whether only the last axis is normalized, and only the first output is used."""
    data = norm.inputs[0]
    rank = len(data.shape) if data is not None and data.shape is not None else 0
    others = any(v.uses() or v.is_graph_output() for v in norm.outputs[1:])
    return norm.attributes.get_int("axis", -1) in {-1, rank - 1} and not others
