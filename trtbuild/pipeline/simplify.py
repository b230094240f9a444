"""The stage that simplifies an exported graph, exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.backends.distributions import version
from trtbuild.engine import Value
from trtbuild.graph import optimize as optimizer

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context


class _OptimizeKey(Value, frozen=True, kw_only=True):
    source_sha256: str
    version: int
    packages: tuple[tuple[str, str], ...]


class _Changes(Value, frozen=True, kw_only=True):
    changes: tuple[optimizer.PassChange, ...]


def optimized(context: Context, graph: Graph) -> Graph:
    """Return the simplified graph."""
    key = _OptimizeKey(
        source_sha256=graph.sha256,
        version=optimizer.VERSION,
        packages=tuple((name, version(name)) for name in ("onnx", "onnx-ir", "onnxscript")),
    )

    def make(out: Path) -> tuple[Graph, _Changes]:
        result, changes = optimizer.optimize(graph, out)
        return result, _Changes(changes=changes)

    result, detail = context.remembered_graph("optimize", "optimized", key, _Changes, make)
    for change in detail.changes:
        context.find("optimize", "; ".join(change.changes))
    return result
