"""Remove nodes that hand their input on unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.graph.passes.rewiring import can_replace, replace_node

if TYPE_CHECKING:
    import onnx_ir as ir


def remove_identities(model: ir.Model) -> tuple[str, ...]:
    """Remove Identity, Dropout in inference mode, and casts to the type that is there.

    What stands in subgraphs stays: there an Identity makes an outer value a result.
    """
    removed = 0
    for node in tuple(model.graph):
        source = node.inputs[0] if node.inputs else None
        if source is None or not _hands_on(node) or not can_replace(source, node.outputs[0]):
            continue
        replace_node(node, source)
        removed += 1
    return (f"{removed} identities removed",) if removed else ()


def _hands_on(node: ir.Node) -> bool:
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        return _mask_unused(node) and not _trains(node)
    if node.op_type == "Cast":
        source = node.inputs[0]
        known = source is not None and source.dtype is not None
        return known and source is not None and source.dtype == node.attributes["to"].as_int()
    return False


def _mask_unused(node: ir.Node) -> bool:
    return all(not mask.uses() and not mask.is_graph_output() for mask in node.outputs[1:])


def _trains(node: ir.Node) -> bool:
    mode = node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004  input 2
    return mode is not None and (mode.const_value is None or bool(mode.const_value.numpy()))
