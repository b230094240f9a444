"""Stable names for what a PyTorch model returns, and for the axes of its ONNX graph."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from trtbuild.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SYMBOL = re.compile(r"\b[suz]\d+\b")
"""What torch calls an axis whose size it does not know, ``s77``."""


def named_outputs(value: object, inputs: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return the tensors of a forward's result by name, in the order of the exported graph.

    One tensor is ``output``, a tuple's are ``output_0``, ``output_1``; dicts, named tuples and
    dataclasses give their keys, nested ones joined by ``_``. ``None`` is left out but counts in
    a tuple. A name that an input has gets ``_output`` behind it: ONNX knows one of each.

    Raises:
        ExportError: the result holds something else than tensors, or two equal names.
    """
    taken = set(inputs)
    named: dict[str, torch.Tensor] = {}
    for path, tensor in _leaves(value, ()):
        name = "_".join(path) or "output"
        if path and path[0].isdigit():
            name = f"output_{name}"
        if name in taken:
            name = f"{name}_output"
        if name in named:
            raise ExportError(
                f"forward returns two outputs called {name!r}; rename one of them"
            )
        named[name] = tensor
    return named


def rename_values(graph: ir.Graph, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Give the inputs and outputs of ``graph``, in order, the model's own names.

    Raises:
        ExportError: the graph has other numbers of inputs or outputs than the model.
    """
    for what, values, names in (
        ("inputs", graph.inputs, inputs),
        ("outputs", graph.outputs, outputs),
    ):
        if len(values) != len(names):
            raise ExportError(
                f"the exported graph has {len(values)} {what}, but the model has {len(names)} "
                f"({', '.join(names)}): its exporter dropped or added some"
            )
    boundary = [*graph.inputs, *graph.outputs]
    wanted = dict(zip(map(id, boundary), (*inputs, *outputs), strict=True))
    used = set(wanted.values())
    for index, value in enumerate(_values(graph)):
        if id(value) not in wanted and value.name in used:
            value.name = f"{value.name}_inner_{index}"
    for index, value in enumerate(boundary):  # two steps: a new name may be another's old one
        value.name = f"trtbuild_boundary_{index}"
    for value in boundary:
        value.name = wanted[id(value)]


def rename_axes(graph: ir.Graph) -> None:
    """Name unknown sizes after the inputs: ``batch`` for axis 0, ``<input>_axis<k>`` otherwise.

    Two axes share a name only where torch proved them equal: a runtime takes equal names for
    equal sizes. Expressions keep their form, ``((3*batch)//2)``.
    """
    names: dict[str, str] = {}
    for value in graph.inputs:
        for axis, symbol in enumerate(_symbols(value)):
            if symbol is not None and symbol not in names:
                is_batch = axis == 0 and "batch" not in names.values()
                names[symbol] = "batch" if is_batch else f"{value.name}_axis{axis}"
    for value in _values(graph):
        if value.shape is not None:
            value.shape = ir.Shape(_renamed(dim, names) for dim in value.shape)


def _leaves(
    value: object, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif value is not None:
        for key, item in _items(value, path):
            yield from _leaves(item, (*path, key))


def _items(value: object, path: tuple[str, ...]) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(map(str, value._fields), value, strict=True))
    if isinstance(value, (tuple, list)):
        return [(str(index), item) for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    where = f" at {'.'.join(path)}" if path else ""
    raise ExportError(
        f"forward returns a {type(value).__name__}{where}, expected tensors. Return tensors "
        f"only, for example from a wrapping module"
    )


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from list(graph.initializers.values())
    for node in graph:
        yield from node.outputs


def _symbols(value: ir.Value) -> Iterator[str | None]:
    for dim in value.shape or ():
        yield None if isinstance(dim, int) else dim.value


def _renamed(dim: int | ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    if dim.value in names:
        return names[dim.value]
    return _SYMBOL.sub(lambda match: names.get(match[0], match[0]), dim.value)
