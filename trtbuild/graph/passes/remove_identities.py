"""Remove nodes that hand their input on unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes import common

if TYPE_CHECKING:
    import onnx_ir as ir


def remove_identities(model: ir.Model) -> tuple[str, ...]:
    """Remove Identity, Dropout in inference mode, and casts to the type that is there."""
    removed = 0
    for node in tuple(model.graph):
        if _hands_on(node):
            source, result = node.inputs[0], node.outputs[0]
            if source is None or result.is_graph_output():
                continue
            result.replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
            removed += 1
    changed = bool(common.IdentityEliminationPass()(model).modified) or removed > 0
    return (f"identities removed ({removed} by us)",) if changed else ()


def _hands_on(node: ir.Node) -> bool:
    if node.op_type == "Dropout":
        mask_unused = len(node.outputs) == 1 or not node.outputs[1].uses()
        training = len(node.inputs) > 2 and node.inputs[2] is not None  # noqa: PLR2004  input 2
        return mask_unused and not training
    if node.op_type == "Cast" and node.inputs[0] is not None:
        source = node.inputs[0]
        return source.dtype is not None and source.dtype == node.attributes["to"].as_int()
    return False
