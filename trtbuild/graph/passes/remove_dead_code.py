"""Remove what no output needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes import common

if TYPE_CHECKING:
    import onnx_ir as ir


def remove_dead_code(model: ir.Model) -> tuple[str, ...]:
    """Remove nodes, initializers, functions and opset imports that no output needs."""
    before = model.graph.num_nodes()
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]  # onnx-ir leaves its __init__ bare
    common.RemoveUnusedOpsetsPass()(model)
    removed = before - model.graph.num_nodes()
    return (f"{removed} dead nodes removed",) if removed else ()
