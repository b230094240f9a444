"""Decide which nodes compute in 8 bits and which tensors need a Q/DQ pair for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from trtbuild.graph.patterns import fitting_any

if TYPE_CHECKING:
    from trtbuild.backends.scheme import Scheme

_SAME_GRID = (
    "MaxPool",
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "DepthToSpace",
    "SpaceToDepth",
)
"""Carriers that only move values: their output must keep the scale of their input."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What to quantize in one graph for one scheme; names are those of the graph.

    ``nodes`` maps each node that computes in 8 bits to the index of its weight (-1 for a
    carrier). ``tensors`` are the activations that get a Q/DQ pair, in the graph's order;
    ``linked`` maps those that must share the scale of another tensor to it. ``absorbed`` maps
    the Relu and Clip nodes that requantization makes superfluous to the interval they keep.
    ``whole`` are the tensors whose every reader gets the dequantized value, because the node
    that makes them leaves only 8 bits behind.
    """

    nodes: dict[str, int]
    tensors: tuple[str, ...]
    linked: dict[str, str]
    absorbed: dict[str, tuple[float, float]]
    whole: frozenset[str]

    @property
    def observed(self) -> tuple[str, ...]:
        """The tensors whose ranges must be measured: those that share no other's scale."""
        return tuple(name for name in self.tensors if name not in self.linked)


def place(model: ir.Model, scheme: Scheme, keep_float: tuple[str, ...]) -> Placement:
    """Return what ``scheme`` quantizes in ``model``; nodes that match ``keep_float`` stay.

    ``keep_float`` are node names or shell patterns over them. Only float32 tensors are
    quantized, and only nodes of ``scheme.compute`` whose weight is a constant, plus the
    carriers between them.
    """
    return _Placer(model, scheme, keep_float).place()


class _Placer:
    def __init__(self, model: ir.Model, scheme: Scheme, keep_float: tuple[str, ...]) -> None:
        self._graph = model.graph
        self._scheme = scheme
        names = [node.name or "" for node in model.graph]
        self._keep_float = fitting_any(names, keep_float)
        self._nodes: dict[str, int] = {}
        self._tensors: dict[ir.Value, None] = {}
        self._linked: dict[ir.Value, ir.Value] = {}
        self._absorbed: dict[str, tuple[float, float]] = {}
        self._whole: set[ir.Value] = set()
        self._behind_codes: set[ir.Value] = set()

    def place(self) -> Placement:
        for node in self._graph:
            self._add_compute(node)
            if node.name in self._nodes or self._behind_codes.intersection(node.inputs):
                self._behind_codes.update(node.outputs)
        carriers = self._carriers()
        for node in self._graph:
            if node in carriers:
                self._add_carrier(node)
        order = [v for v in self._all_values() if v in self._tensors]
        return Placement(
            nodes=self._nodes,
            tensors=tuple(_name(v) for v in order),
            linked={_name(v): _name(self._root(v)) for v in order if v in self._linked},
            absorbed=self._absorbed,
            whole=frozenset(_name(v) for v in self._whole),
        )

    def _all_values(self) -> list[ir.Value]:
        return [*self._graph.inputs, *(v for node in self._graph for v in node.outputs)]

    def _kept(self, node: ir.Node) -> bool:
        return (node.name or "") in self._keep_float

    def _add_compute(self, node: ir.Node) -> None:
        weight = weight_index(node)
        if node.op_type not in self._scheme.compute or weight is None or self._kept(node):
            return
        data = node.inputs[1 - weight]
        if data is None or data.dtype != ir.DataType.FLOAT or data.is_initializer():
            return
        if self._is_stem(node):
            return
        self._nodes[_name(node)] = weight
        self._tensors[data] = None
        if node.op_type in self._scheme.requantize_outputs:
            self._requantize(node)

    def _is_stem(self, node: ir.Node) -> bool:
        """Tell whether a convolution before all 8-bit nodes is too small for 8 bits."""
        weight = node.inputs[1] if node.op_type == "Conv" else None
        if weight is None or weight.const_value is None or node.inputs[0] in self._behind_codes:
            return False
        channels, *places = weight.const_value.shape.numpy()
        few = math.prod(places) < self._scheme.float_stem
        whole = node.attributes.get_int("group", 1) == 1
        return few and whole and channels <= math.prod(places[1:])

    def _requantize(self, node: ir.Node) -> None:
        result = self._behind_activation(node.outputs[0])
        self._tensors[result] = None
        self._whole.add(result)

    def _behind_activation(self, value: ir.Value) -> ir.Value:
        """Return the output of the Relu or Clip that alone reads ``value``, or ``value``.

        Codes from zero up do what a Relu does; codes symmetric around zero do not.
        """
        uses = value.uses()
        if len(uses) != 1 or value.is_graph_output():
            return value
        reader = next(iter(uses)).node
        interval = _kept_interval(reader) if self._scheme.activation == "uint8" else None
        if interval is None or self._kept(reader):
            return value
        self._absorbed[_name(reader)] = interval
        return reader.outputs[0]

    def _carriers(self) -> set[ir.Node]:
        """Return the carriers between 8-bit inputs and a node that wants 8 bits."""
        quantized = set(self._tensors)
        forward: list[ir.Node] = []
        for node in self._graph:
            if node.op_type not in self._scheme.carriers or self._kept(node):
                continue
            data = _float_inputs(node)
            if data and all(v in quantized for v in data):
                forward.append(node)
                quantized.add(self._peek_activation(node.outputs[0]))
        wanted = {v for n in self._graph if n.name in self._nodes for v in n.inputs if v}
        codes = self._whole | {self._peek_activation(n.outputs[0]) for n in forward}
        kept: set[ir.Node] = set()
        for node in reversed(forward):
            tail = node.op_type in self._scheme.tails and codes.issuperset(_float_inputs(node))
            if tail or self._peek_activation(node.outputs[0]) in wanted:
                kept.add(node)
                wanted.update(_float_inputs(node))
        return kept

    def _peek_activation(self, value: ir.Value) -> ir.Value:
        before = dict(self._absorbed)
        result = self._behind_activation(value)
        self._absorbed = before
        return result

    def _add_carrier(self, node: ir.Node) -> None:
        self._nodes[_name(node)] = -1
        if _keeps_grid(node):
            result = node.outputs[0]
            self._tensors[result] = None
            self._whole.add(result)
            self._linked[result] = _float_inputs(node)[0]
            return
        self._requantize(node)

    def _root(self, value: ir.Value) -> ir.Value:
        while value in self._linked:
            value = self._linked[value]
        return value


def _keeps_grid(node: ir.Node) -> bool:
    """Tell whether every value of the output is one of the input."""
    if node.op_type == "Resize":
        return node.attributes.get_string("mode", "nearest") == "nearest"
    return node.op_type in _SAME_GRID


def weight_index(node: ir.Node) -> int | None:
    """Return which of the first two inputs is the constant weight, None if not just one is."""
    if len(node.inputs) < 2:  # noqa: PLR2004  data and weight
        return None
    constant = [
        v is not None and v.const_value is not None and v.const_value.dtype == ir.DataType.FLOAT
        for v in node.inputs[:2]
    ]
    if constant[1] and not constant[0]:
        return 1
    return 0 if constant[0] and not constant[1] and node.op_type == "MatMul" else None


def _float_inputs(node: ir.Node) -> list[ir.Value]:
    """Return the inputs that carry data: float32 and no constant."""
    return [
        v
        for v in node.inputs
        if v is not None and v.dtype == ir.DataType.FLOAT and v.const_value is None
    ]


def _kept_interval(node: ir.Node) -> tuple[float, float] | None:
    """Return the interval that a Relu or Clip keeps, None for another node."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    bounds = [float("-inf"), float("inf")]
    for index in (1, 2):
        bound = node.inputs[index] if index < len(node.inputs) else None
        if bound is not None:
            if bound.const_value is None:
                return None
            bounds[index - 1] = float(bound.const_value.numpy())
    low, high = bounds
    return (low, high) if low <= 0.0 <= high else None


def _name(item: ir.Value | ir.Node) -> str:
    if not item.name:
        raise ValueError("every node and tensor must have a name before placement")
    return item.name
