"""Write the sum of two tensors as Add, the form that both backends fuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator


def sum_to_add(model: ir.Model) -> tuple[str, ...]:
    """Turn ``Sum(a, b)`` into ``Add(a, b)``: residual connections of old exporters."""
    changed = 0
    for node in tuple(_sums_of_two(model)):
        add = ir.node("Add", inputs=list(node.inputs), name=node.name)
        result, old = add.outputs[0], node.outputs[0]
        name, result.type, result.shape = old.name, old.type, old.shape
        model.graph.insert_before(node, add)
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        result.name = name
        changed += 1
    return (f"{changed} sums of two written as Add",) if changed else ()


def _sums_of_two(model: ir.Model) -> Iterator[ir.Node]:
    return (n for n in model.graph if n.op_type == "Sum" and len(n.inputs) == 2)  # noqa: PLR2004  a, b
