"""Compute at build time what depends on constants only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes import common
from onnxscript import optimizer

from trtbuild.errors import BuildError

if TYPE_CHECKING:
    import onnx_ir as ir

_INPUT_LIMIT_ELEMENTS = 1 << 16
_OUTPUT_LIMIT_ELEMENTS = 1 << 20
"""Above this a folded tensor would bloat the file more than the node costs at run time."""


_UNLIMITED = 1 << 62

_MOVES = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""What costs no space to fold: a weight behind one of these is a constant only once folded, and
only constants are quantized."""


def fold_constants(model: ir.Model) -> tuple[str, ...]:
    """Fold constant subgraphs and shape arithmetic; turn Constant nodes into initializers.

    An initializer that is an input too, as old files have it, becomes a constant.

    Raises:
        BuildError: a node of constants cannot be computed.
    """
    nodes, inputs = model.graph.num_nodes(), len(model.graph.inputs)
    common.RemoveInitializersFromInputsPass()(model)
    try:
        optimizer.fold_constants(
            model,
            input_size_limit=_INPUT_LIMIT_ELEMENTS,
            output_size_limit=_OUTPUT_LIMIT_ELEMENTS,
        )
        optimizer.fold_constants(
            model,
            input_size_limit=_UNLIMITED,
            output_size_limit=_UNLIMITED,
            should_fold=_keeps_size,
        )
    except RuntimeError as error:
        raise BuildError(
            f"{error}: {error.__cause__}. Correct the constants of this node"
        ) from error
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    folded = nodes - model.graph.num_nodes()
    freed = inputs - len(model.graph.inputs)
    changes = []
    if folded:
        changes.append(f"{folded} constant nodes folded")
    if freed:
        changes.append(f"{freed} constants no longer inputs")
    return tuple(changes)


def _keeps_size(node: ir.Node) -> bool:
    return node.op_type in _MOVES
