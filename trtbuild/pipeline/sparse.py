"""The stage that makes weights 2:4 sparse, before anything is measured or quantized."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from trtbuild.backends.distributions import version
from trtbuild.engine import Value
from trtbuild.errors import BuildError, RecipeError
from trtbuild.graph.model import load_structure
from trtbuild.graph.patterns import fitting
from trtbuild.pipeline.source import calibration
from trtbuild.quantization import input_products, prune
from trtbuild.report.document import DenseNode, SparsityReport
from trtbuild.wording import counted

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.source import Data

_CRITERIA = {
    True: "magnitude times input, the rest compensates on calibration data",
    False: "magnitude, without data nothing compensates",
}


class _SparseKey(Value, frozen=True, kw_only=True):
    graph_sha256: str
    data_sha256: str
    keep_dense: tuple[str, ...]
    version: int
    moments: int
    packages: tuple[tuple[str, str], ...]


def sparsified(
    context: Context, graph: Graph, data: Data | None
) -> tuple[Graph, SparsityReport | None]:
    """Return the graph with 2:4 weights where the recipe asks for them, and what was done.

    Raises:
        RecipeError: a pattern of ``keep_dense`` fits no node.
        BuildError: no layer can be sparse.
        DataError: the data does not fit the model, or a layer reads NaN or infinite values.
    """
    table = context.recipe.quantization
    if table.sparsity is None:
        return graph, None
    _expect_nodes(context, graph)
    key = _SparseKey(
        graph_sha256=graph.sha256,
        data_sha256=data.info.calibration_sha256 if data is not None else "",
        keep_dense=table.keep_dense,
        version=prune.VERSION,
        moments=input_products.VERSION if data is not None else 0,
        packages=tuple((name, version(name)) for name in ("numpy", "onnxruntime")),
    )

    def make(out: Path) -> tuple[Graph, prune.Pruned]:
        if data is None:
            return prune.prune(graph, table.keep_dense, (), out)
        layers = prune.prunable(graph, table.keep_dense)
        with context.store.scratch() as folder:
            over = input_products.Pass(
                batches=lambda: calibration(data, graph),
                work=folder,
                progress=lambda seen: context.say(f"prune: {counted(seen, 'sample')}"),
            )
            found = input_products.second_moments(graph, layers, over)
            return prune.prune(graph, table.keep_dense, found, out)

    result, found = context.remembered_graph("prune", "sparse", key, prune.Pruned, make)
    return result, _report(found, with_data=data is not None)


def expect_sparse(
    context: Context, network: Graph, found: SparsityReport, *, needed: bool
) -> None:
    """See that the weights of every layer that is said to be sparse are so in ``network``.

    Raises:
        BuildError: one is not, and the backend has kernels that would have needed it.
    """
    bad = prune.broken(network, found.sparse)
    if not bad:
        return
    named = ", ".join(map(repr, bad[:5]))
    if needed:
        raise BuildError(
            f"{context.recipe.name}: {len(bad)} layers are not 2:4 any more after "
            f"quantization: {named}. Leave them out of sparsity with keep_dense"
        )
    context.find("prune", f"{len(bad)} layers are not 2:4 in ONNX Runtime's own form: {named}")


def _expect_nodes(context: Context, graph: Graph) -> None:
    nodes = [node.name or "" for node in load_structure(graph.path).graph]
    for pattern in context.recipe.quantization.keep_dense:
        if not fitting(nodes, pattern):
            close = difflib.get_close_matches(pattern, nodes, n=3, cutoff=0.0)
            raise RecipeError(
                f"{context.recipe.name}: keep_dense {pattern!r} fits no node of the simplified "
                f"graph; the closest are {', '.join(close)}. Correct it, or leave it out"
            )


def _report(found: prune.Pruned, *, with_data: bool) -> SparsityReport:
    weights = sum(each.weights for each in found.sparse)
    return SparsityReport(
        pattern="2:4",
        criterion=_CRITERIA[with_data],
        sparse=tuple(each.node for each in found.sparse),
        dense=tuple(DenseNode(node=each.node, reason=each.reason) for each in found.dense),
        weight_share=round(weights / found.weights, 6),
        lost={each.node: each.lost for each in found.sparse if each.lost is not None},
    )
