"""Give every anonymous dynamic axis of an input a name of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator


def name_axes(model: ir.Model) -> tuple[str, ...]:
    """Name dynamic input axes that have no name, or ``?``.

    TensorRT takes equal names for equal sizes: two axes both called ``?`` cannot have
    different profiles.
    """
    named = []
    for value, axis in tuple(_anonymous(model)):
        name = f"{value.name}_axis{axis}"
        dims = list(value.shape or ())
        dims[axis] = ir.SymbolicDim(name)
        value.shape = ir.Shape(dims)  # a new one, since inference freezes those that it read
        named.append(name)
    return (f"dynamic axes named: {', '.join(named)}",) if named else ()


def _anonymous(model: ir.Model) -> Iterator[tuple[ir.Value, int]]:
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value in (None, "", "?"):
                yield value, axis
