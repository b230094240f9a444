"""Simplify an ONNX model without changing what it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes import common

from trtbuild.engine import Value
from trtbuild.graph.model import infer_shapes, load_model, node_names, save_model
from trtbuild.graph.passes.fold_batch_norm import fold_batch_norm
from trtbuild.graph.passes.fold_bias import fold_bias
from trtbuild.graph.passes.fold_constants import fold_constants
from trtbuild.graph.passes.fold_scale import fold_scale
from trtbuild.graph.passes.name_axes import name_axes
from trtbuild.graph.passes.raise_opset import raise_opset
from trtbuild.graph.passes.remove_dead_code import remove_dead_code
from trtbuild.graph.passes.remove_identities import remove_identities
from trtbuild.graph.passes.sum_to_add import sum_to_add

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.graph import Graph

VERSION = 2
"""Part of the key of an optimized graph; raised when a pass starts to give other graphs."""

PASSES = (
    remove_identities,
    fold_constants,
    sum_to_add,
    fold_batch_norm,
    fold_scale,
    fold_bias,
    remove_dead_code,
    name_axes,
)
"""In the order in which they run; again, until none of them changes anything: a bias that was
folded can bring a convolution next to its batch normalization."""

_ROUNDS = 8
"""More than any model needed; a bound, so that passes can never undo each other for ever."""


class PassChange(Value, frozen=True, kw_only=True):
    """What one pass changed, in its own words."""

    name: str
    changes: tuple[str, ...]


def optimize(graph: Graph, out: Path) -> tuple[Graph, tuple[PassChange, ...]]:
    """Return the simplified graph, written to ``out``, and what each pass changed.

    Every node of the result has a name of its own, and every tensor the type and shape that
    inference can tell. A tensor that keeps its name keeps its values. Passes that changed
    nothing are left out of the list.

    Raises:
        BuildError: the opset is too old and cannot be raised, or a node of constants cannot
            be computed.
    """
    model = load_model(graph.path)
    common.InlinePass()(model)
    model, raised = raise_opset(model)
    node_names(model)
    dead = remove_dead_code(model)  # what nobody uses costs inference the square of its number
    infer_shapes(model)
    changes = {"raise_opset": raised, "remove_dead_code": dead}
    for _ in range(_ROUNDS):
        found = {run.__name__: run(model) for run in PASSES}
        for name, lines in found.items():
            changes[name] = changes.get(name, ()) + lines
        if not any(found.values()):
            break
    node_names(model)
    infer_shapes(model)
    common.TopologicalSortPass()(model)
    result = save_model(model, out)
    told = (PassChange(name=name, changes=lines) for name, lines in changes.items() if lines)
    return result, tuple(told)
