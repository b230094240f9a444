"""Expose inner tensors of a graph as outputs, so that a run can be observed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.graph.model import load_model, save_model

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.graph import Graph


def with_outputs(graph: Graph, tensors: tuple[str, ...], out: Path) -> Graph:
    """Return ``graph`` with ``tensors`` as its only outputs, written to ``out``.

    Nodes that no observed tensor needs are kept; a runtime drops them itself.

    Raises:
        ValueError: a name is no tensor of the main graph.
    """
    model = load_model(graph.path)
    values = {value.name: value for value in model.graph.inputs}
    values.update({v.name: v for node in model.graph for v in node.outputs})
    unknown = [name for name in tensors if name not in values]
    if unknown:
        raise ValueError(f"{graph.path}: no tensors are called {', '.join(unknown)}")
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[name] for name in tensors)
    return save_model(model, out)
