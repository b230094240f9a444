"""Write Q/DQ pairs into a graph, in the form that one backend's kernels fuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from trtbuild.errors import BuildError
from trtbuild.graph.model import infer_shapes, load_model, save_model
from trtbuild.graph.passes.raise_opset import raise_opset
from trtbuild.quantization.codes import (
    asymmetric_grid,
    channel_amax,
    fp8_codes,
    fp8_grid,
    int8_codes,
    int32_codes,
    symmetric_grid,
    uint8_codes,
    widen_for_bias,
)
from trtbuild.quantization.placement import place

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from trtbuild.backends.scheme import Scheme
    from trtbuild.graph import Graph
    from trtbuild.quantization.codes import Grid
    from trtbuild.quantization.placement import Placement

VERSION = 2
"""Part of the key of a quantized graph; raised when it starts to give other graphs."""

_QUANTIZED_OPERATORS = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
)

_FP8_OPSET = 19
"""The first opset whose QuantizeLinear gives E4M3 (ONNX operator changelog)."""

_DATA_OPERANDS = ("Add", "Sub", "Mul", "Div", "Concat")
"""Carriers whose float constants are data, and so need codes too."""


def placement_of(graph: Graph, scheme: Scheme, keep_float: tuple[str, ...]) -> Placement:
    """Return what :func:`quantize` will quantize in ``graph``.

    Raises:
        BuildError: the model is quantized already.
    """
    model = load_model(graph.path)
    for node in model.graph:
        if node.op_type in _QUANTIZED_OPERATORS:
            raise BuildError(
                f"{graph.path}: node {node.name!r} ({node.op_type}) shows that the model is "
                f"quantized already. Give the floating-point model, or ask for fp32 to keep it"
            )
    return place(model, scheme, keep_float)


def quantize(
    graph: Graph,
    placement: Placement,
    thresholds: Mapping[str, tuple[float, float]],
    scheme: Scheme,
    out: Path,
) -> Graph:
    """Return ``graph`` with the Q/DQ pairs of ``placement``, written to ``out``.

    ``thresholds`` are the intervals of the placement's observed tensors. Weights get one scale
    per output channel, activations one per tensor. Inputs and outputs keep their names and
    types.
    """
    model = load_model(graph.path)
    if scheme.activation == "fp8":
        model, _ = raise_opset(model, _FP8_OPSET, _FP8_OPSET)
    _Writer(model, placement, scheme).write(thresholds)
    model.graph.sort()
    common.RemoveUnusedNodesPass()(model)
    infer_shapes(model)
    return save_model(model, out)


class _Writer:
    """One rewrite: the model, what to do with it, and the pairs that exist already."""

    def __init__(self, model: ir.Model, placement: Placement, scheme: Scheme) -> None:
        self._graph = model.graph
        self._placement = placement
        self._scheme = scheme
        self._nodes = [n for n in model.graph if n.name in placement.nodes]
        self._grids: dict[str, Grid] = {}
        self._constants: dict[str, ir.Value] = {}
        self._taken = _names(model.graph)
        self._weights: dict[tuple[str, bytes], ir.Value] = {}

    def write(self, thresholds: Mapping[str, tuple[float, float]]) -> None:
        values = {v.name: v for v in self._graph.inputs}
        values.update({v.name: v for node in self._graph for v in node.outputs})
        for name in self._placement.tensors:
            root = self._placement.linked.get(name, name)
            self._grids[name] = self._grid(self._clipped(values[root], thresholds[root]))
        for node in self._nodes:
            self._parameters(node)
        for name in self._placement.tensors:
            self._activation(values[name])

    def _clipped(self, value: ir.Value, interval: tuple[float, float]) -> tuple[float, float]:
        producer = value.producer()
        name = producer.name if producer is not None else None
        low, high = self._placement.absorbed.get(name or "", (-np.inf, np.inf))
        return max(interval[0], low), min(interval[1], high)

    def _grid(self, interval: tuple[float, float]) -> Grid:
        low, high = interval
        amax = np.asarray(max(-low, high), dtype=np.float64)
        if self._scheme.activation == "int8":
            return symmetric_grid(amax, rest=self._scheme.rest)
        if self._scheme.activation == "fp8":
            return fp8_grid(amax, self._scheme.rest)
        return asymmetric_grid(low, high)

    def _weight_grid(self, maxima: npt.NDArray[np.float64]) -> Grid:
        if self._scheme.activation == "fp8":
            return fp8_grid(maxima, self._scheme.rest)
        return symmetric_grid(maxima, self._scheme.weight_bits, self._scheme.rest)

    def _weight_codes(
        self, array: npt.NDArray[np.float32], grid: Grid, axis: int | None
    ) -> npt.NDArray[np.generic]:
        if self._scheme.activation == "fp8":
            return fp8_codes(array, grid, axis)
        return int8_codes(array, grid, axis, self._scheme.weight_bits)

    def _constant(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        """Return the constant that this rewrite calls ``name``; the model may have one too."""
        if name not in self._constants:
            free = self._free(name)
            value = ir.val(free, const_value=ir.tensor(array, name=free))
            self._graph.register_initializer(value)
            self._constants[name] = value
        return self._constants[name]

    def _free(self, name: str) -> str:
        free, number = name, 0
        while free in self._taken:
            number += 1
            free = f"{name}_{number}"
        self._taken.add(free)
        return free

    def _node(
        self, op_type: str, inputs: list[ir.Value], name: str, axis: int | None
    ) -> ir.Value:
        attributes = {} if axis is None else {"axis": axis}
        node = ir.node(op_type, inputs, attributes, name=self._free(f"{name}_{op_type}"))
        node.outputs[0].name = self._free(f"{name}_{op_type}_Output")
        self._graph.append(node)
        return node.outputs[0]

    def _activation(self, value: ir.Value) -> None:
        name, grid = value.name or "", self._grids[value.name or ""]
        source = self._without_absorbed(value)
        readers = [
            (use.node, use.idx)
            for use in value.uses()
            if name in self._placement.whole or self._reads_codes(use.node, use.idx)
        ]
        root = self._placement.linked.get(name, name)
        scale = self._constant(f"{root}_scale", grid.scale)
        zero_point = self._constant(f"{root}_zero_point", grid.zero_point)
        codes = self._node("QuantizeLinear", [source, scale, zero_point], name, None)
        result = self._node("DequantizeLinear", [codes, scale, zero_point], name, None)
        result.type, result.shape = value.type, value.shape
        for node, index in readers:
            node.replace_input_with(index, result)
        if name in self._placement.whole and value.is_graph_output():
            value.name = self._free(f"{name}_unquantized")
            result.name = name
            outputs = self._graph.outputs
            outputs[:] = [result if v is value else v for v in outputs]

    def _without_absorbed(self, value: ir.Value) -> ir.Value:
        producer = value.producer()
        if producer is None or producer.name not in self._placement.absorbed:
            return value
        source = producer.inputs[0]
        if source is None:
            raise ValueError(f"{producer.name} has no input")
        return source

    def _reads_codes(self, node: ir.Node, index: int) -> bool:
        weight = self._placement.nodes.get(node.name or "")
        if weight is None or node.graph is not self._graph:  # names in subgraphs are their own
            return False
        return weight == -1 or index == 1 - weight

    def _parameters(self, node: ir.Node) -> None:
        weight_index = self._placement.nodes[node.name or ""]
        if weight_index == -1:
            if node.op_type in _DATA_OPERANDS:
                self._constant_operands(node)
            return
        data, weight = node.inputs[1 - weight_index], node.inputs[weight_index]
        if data is None or weight is None or weight.const_value is None:
            raise ValueError(f"{node.name} has no weight")
        input_scale = self._grids[data.name or ""].scale
        array = weight.const_value.numpy()
        axis = _channel_axis(node, weight_index, array.ndim)
        bias = self._int32_bias(node, axis)
        maxima = channel_amax(array, axis)
        if bias is not None:
            maxima = widen_for_bias(maxima, bias, input_scale, self._scheme.weight_bits)
        grid = self._weight_grid(maxima)
        node.replace_input_with(weight_index, self._weight(weight, array, grid, axis))
        if bias is not None:
            node.replace_input_with(2, self._bias(node, bias, grid.scale * input_scale))

    def _weight(
        self,
        weight: ir.Value,
        array: npt.NDArray[np.float32],
        grid: Grid,
        axis: int | None,
    ) -> ir.Value:
        """Return the dequantized weight; a weight that two nodes share is stored once."""
        key = (weight.name or "", grid.scale.tobytes() + repr(axis).encode())
        if key not in self._weights:
            name = f"{weight.name}_{len(self._weights)}"
            codes = self._weight_codes(array, grid, axis)
            inputs = [
                self._constant(f"{name}_quantized", codes),
                self._constant(f"{name}_scale", grid.scale),
                self._constant(f"{name}_zero_point", grid.zero_point),
            ]
            self._weights[key] = self._node("DequantizeLinear", inputs, name, axis)
        return self._weights[key]

    def _int32_bias(self, node: ir.Node, axis: int | None) -> npt.NDArray[np.float32] | None:
        """Return the bias that the scheme wants as int32, None if none is or can be."""
        bias = node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004  input 2
        if self._scheme.bias != "int32" or bias is None or bias.const_value is None:
            return None
        factors = (
            node.attributes.get_float("alpha", 1.0),
            node.attributes.get_float("beta", 1.0),
        )
        array: npt.NDArray[np.float32] = bias.const_value.numpy()
        return None if factors != (1.0, 1.0) or array.ndim != 1 or axis is None else array

    def _bias(
        self,
        node: ir.Node,
        bias: npt.NDArray[np.float32],
        scale: npt.NDArray[np.float32],
    ) -> ir.Value:
        name = f"{node.name}_bias"
        inputs = [
            self._constant(f"{name}_quantized", int32_codes(bias, scale)),
            self._constant(f"{name}_scale", scale),
            self._constant(f"{name}_zero_point", np.zeros(scale.shape, dtype=np.int32)),
        ]
        return self._node("DequantizeLinear", inputs, name, 0)

    def _constant_operands(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is None:
                continue
            array = value.const_value.numpy()
            grid = self._grid((min(float(array.min()), 0.0), max(float(array.max()), 0.0)))
            symmetric = self._scheme.activation == "int8"
            codes = int8_codes(array, grid, None) if symmetric else uint8_codes(array, grid)
            name = f"{node.name}_operand_{index}"
            inputs = [
                self._constant(f"{name}_quantized", codes),
                self._constant(f"{name}_scale", grid.scale),
                self._constant(f"{name}_zero_point", grid.zero_point),
            ]
            node.replace_input_with(index, self._node("DequantizeLinear", inputs, name, None))


def _names(graph: ir.Graph) -> set[str]:
    """Return the names of all values and nodes, which new ones must not take."""
    nodes = tuple(ir.traversal.RecursiveGraphIterator(graph))
    values = (*graph.inputs, *(value for node in nodes for value in node.outputs))
    names = {value.name or "" for value in values} | {node.name or "" for node in nodes}
    return names | set(graph.initializers)


def _channel_axis(node: ir.Node, weight_index: int, rank: int) -> int | None:
    """Return the axis of a weight that holds output channels, None for one scale in all.

    ConvTranspose with groups and products with weights of more than two axes have no such axis
    that runtimes accept.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if node.attributes.get_int("group", 1) == 1 else None
    if rank != 2:  # noqa: PLR2004  a matrix
        return None
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return weight_index
