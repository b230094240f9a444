"""Which nodes of a graph the recipe keeps in floating point."""

from __future__ import annotations

import difflib
import fnmatch
from typing import TYPE_CHECKING

from trtbuild.errors import RecipeError
from trtbuild.graph.model import load_model

if TYPE_CHECKING:
    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context


def kept_nodes(context: Context, graph: Graph) -> frozenset[str]:
    """Return the nodes that the recipe keeps in floating point.

    Raises:
        RecipeError: a pattern fits no node: a typing mistake would quantize what it names.
    """
    nodes = [node.name or "" for node in load_model(graph.path).graph]
    kept: set[str] = set()
    for pattern in context.recipe.quantization.keep_float:
        found = fnmatch.filter(nodes, pattern)
        if not found:
            close = difflib.get_close_matches(pattern, nodes, n=3, cutoff=0.0)
            raise RecipeError(
                f"{context.recipe.name}: keep_float {pattern!r} fits no node of the simplified "
                f"graph; the closest are {', '.join(close)}. Correct it, or leave it out"
            )
        kept.update(found)
    return frozenset(kept)
