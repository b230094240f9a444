"""Compute at build time what depends on constants only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes import common
from onnxscript import optimizer

if TYPE_CHECKING:
    import onnx_ir as ir

_INPUT_LIMIT_BYTES = 1 << 16
_OUTPUT_LIMIT_BYTES = 1 << 20
"""Above this a folded tensor would bloat the file more than the node costs at run time."""


def fold_constants(model: ir.Model) -> tuple[str, ...]:
    """Fold constant subgraphs and shape arithmetic; turn Constant nodes into initializers."""
    before = model.graph.num_nodes()
    optimizer.fold_constants(
        model, input_size_limit=_INPUT_LIMIT_BYTES, output_size_limit=_OUTPUT_LIMIT_BYTES
    )
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    removed = before - model.graph.num_nodes()
    return (f"{removed} constant nodes folded",) if removed else ()
