"""Reduce inner tensors inside the graph, so that a run hands out numbers instead of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trtbuild.graph.model import infer_shapes, load_model, save_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trtbuild.graph import Graph

_NARROW = frozenset(
    {
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.FLOAT8E4M3FN,
        ir.DataType.FLOAT8E5M2,
    }
)
"""Exact in float32, and without reductions in ONNX Runtime on a processor."""

_AXES_ARE_INPUTS = {"ReduceSum": 13, "ReduceMax": 18, "ReduceMean": 18}
"""The opset from which the axes of a reduction are an input (ONNX operator changelog)."""


@dataclass(frozen=True, kw_only=True)
class ExtremeNames:
    """The outputs that tell of one tensor; scalars.

    ``amax`` is the largest finite magnitude, 0 without any. ``total`` is the sum of the finite
    magnitudes, NaN exactly if the tensor holds a NaN.
    """

    amax: str
    total: str


@dataclass(frozen=True, kw_only=True)
class ChannelNames:
    """The outputs that tell of one tensor; reduced are all axes but the first and the channels.

    ``amax`` and ``mean`` are [rows, channels]; where the channels lie along the first axis they
    are [1, channels]. ``shape`` is the shape of the tensor, int64.
    """

    amax: str
    mean: str
    shape: str


def with_extremes(
    graph: Graph, tensors: tuple[str, ...], out: Path
) -> tuple[Graph, dict[str, ExtremeNames]]:
    """Return ``graph`` with extremes of ``tensors`` as its only outputs, written to ``out``.

    Raises:
        ValueError: a name is no tensor of the main graph.
    """
    writer = _Writer(graph)
    names = {tensor: writer.extremes(tensor) for tensor in tensors}
    return writer.written(out), names


def with_channel_statistics(
    graph: Graph, tensors: Mapping[str, int], out: Path
) -> tuple[Graph, dict[str, ChannelNames]]:
    """Return ``graph`` with per-channel reductions as its only outputs, written to ``out``.

    ``tensors`` maps each tensor to the axis of its channels; negative ones count from the end.

    Raises:
        ValueError: a name is no tensor of the main graph, its rank is not known, or the axis is
            not one of its axes.
    """
    writer = _Writer(graph)
    names = {tensor: writer.channels(tensor, axis) for tensor, axis in tensors.items()}
    return writer.written(out), names


class _Writer:
    """A graph that loses its outputs and gets reductions of its tensors instead."""

    def __init__(self, graph: Graph) -> None:
        self._model = load_model(graph.path)
        self._path = graph.path
        self._opset = self._model.opset_imports.get("", 1)
        inner = self._model.graph
        self._values = {value.name: value for value in inner.inputs}
        self._values.update({v.name: v for node in inner for v in node.outputs})
        everything = tuple(ir.traversal.RecursiveGraphIterator(inner))
        self._taken: set[str | None] = {*inner.initializers, *self._values}
        self._taken |= {v.name for node in everything for v in node.outputs}
        self._outputs: list[ir.Value] = []

    def extremes(self, tensor: str) -> ExtremeNames:
        magnitude = self._node("Abs", [self._wide(tensor)])
        infinite = self._node("IsInf", [magnitude])
        zero = self._constant(np.zeros((), _dtype(magnitude)))
        finite = self._node("Where", [infinite, zero, magnitude])
        outputs = (self._node(f"Reduce{word}", [finite], keepdims=0) for word in ("Max", "Sum"))
        amax, total = self._expose(*outputs)
        return ExtremeNames(amax=amax, total=total)

    def channels(self, tensor: str, axis: int) -> ChannelNames:
        value = self._wide(tensor)
        shape = self._value(tensor).shape
        if shape is None:
            raise ValueError(f"{self._path}: the rank of {tensor!r} is not known")
        rank = len(shape)
        if not -rank <= axis < rank:
            raise ValueError(f"{self._path}: {tensor!r} has {rank} axes, so no axis {axis}")
        channel = axis % rank
        kept = (0, channel)
        axes = [each for each in range(rank) if each not in kept]
        # [rows, channels] whatever the rank: channels that lie along the first axis are 1 row.
        flat = self._constant(np.array([1, -1] if channel == 0 else [0, -1], np.int64))
        magnitude = self._node("Abs", [value])
        amax = self._node("Reshape", [self._reduced("ReduceMax", magnitude, axes), flat])
        mean = self._node("Reshape", [self._reduced("ReduceMean", value, axes), flat])
        names = self._expose(amax, mean, self._node("Shape", [value]))
        return ChannelNames(amax=names[0], mean=names[1], shape=names[2])

    def written(self, out: Path) -> Graph:
        self._model.graph.outputs.clear()
        self._model.graph.outputs.extend(self._outputs)
        return save_model(self._model, out)

    def _expose(self, *values: ir.Value) -> tuple[str, ...]:
        self._outputs.extend(values)
        return tuple(value.name or "" for value in values)

    def _value(self, tensor: str) -> ir.Value:
        if tensor not in self._values:
            raise ValueError(f"{self._path}: no tensors are called {tensor}")
        value = self._values[tensor]
        if value.dtype is None or value.shape is None:
            infer_shapes(self._model)
        return value

    def _wide(self, tensor: str) -> ir.Value:
        """Return the tensor in a type that has every reduction."""
        value = self._value(tensor)
        if value.dtype not in _NARROW:
            return value
        wide = self._node("Cast", [value], to=int(ir.DataType.FLOAT))
        wide.dtype = ir.DataType.FLOAT
        return wide

    def _reduced(self, operator: str, value: ir.Value, axes: list[int]) -> ir.Value:
        if not axes:
            return value
        if self._opset < _AXES_ARE_INPUTS[operator]:
            return self._node(operator, [value], axes=axes, keepdims=0)
        given = self._constant(np.array(axes, np.int64))
        return self._node(operator, [value, given], keepdims=0)

    def _constant(self, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
        name = self._free("constant")
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self._model.graph.register_initializer(value)
        return value

    def _node(
        self, operator: str, inputs: list[ir.Value], **attributes: int | list[int]
    ) -> ir.Value:
        node = ir.node(operator, inputs, attributes, name=self._free(operator))
        output = node.outputs[0]
        output.name = self._free(f"{operator}_output")
        dtype = inputs[1 if operator == "Where" else 0].dtype
        dtype = {"IsInf": ir.DataType.BOOL, "Shape": ir.DataType.INT64}.get(operator, dtype)
        if dtype is not None:
            output.dtype = dtype
        self._model.graph.append(node)
        return output

    def _free(self, base: str) -> str:
        name = f"reduce_{base}_{len(self._taken)}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _dtype(value: ir.Value) -> np.dtype[np.generic]:
    return np.dtype(np.float64 if value.dtype == ir.DataType.DOUBLE else np.float32)
