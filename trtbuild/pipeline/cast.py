"""The stage that converts a graph to FP16 or BF16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trtbuild.engine import Value
from trtbuild.pipeline.keeping import kept_nodes
from trtbuild.pipeline.network import Network
from trtbuild.pipeline.ranges import extremes_of
from trtbuild.quantization import casting

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.source import Data


class _CastKey(Value, frozen=True, kw_only=True):
    graph_sha256: str
    ranges_sha256: str
    precision: str
    keep_float: tuple[str, ...]
    emulated: bool
    version: int


class _Kept(Value, frozen=True, kw_only=True):
    kept: tuple[casting.Kept, ...]


def cast(context: Context, graph: Graph, data: Data | None) -> Network:
    """Return the FP16 or BF16 network, overflowing nodes kept in FP32."""
    precision = context.recipe.quantization.precision
    low: Literal["fp16", "bf16"] = "bf16" if precision == "bf16" else "fp16"
    amax: dict[str, float] = {}
    ranges_sha256 = ""
    if data is not None and low == "fp16":
        tensors = casting.float_tensors(graph)
        amax, ranges_sha256 = extremes_of(context, graph, data, tensors)
    elif low == "fp16":
        context.find("cast", "ranges were not scanned for overflow in FP16: there is no data")
    kept = kept_nodes(context, graph)

    def stage(name: str, *, emulated: bool) -> Graph:
        plan = casting.Casting(
            precision=low,
            amax=amax,
            keep_float=kept,
            emulated=emulated,
        )
        key = _CastKey(
            graph_sha256=graph.sha256,
            ranges_sha256=ranges_sha256,
            precision=low,
            keep_float=tuple(sorted(kept)),
            emulated=emulated,
            version=casting.VERSION,
        )

        def make(out: Path) -> tuple[Graph, _Kept]:
            result, kept_nodes = casting.cast_graph(graph, plan, out)
            return result, _Kept(kept=kept_nodes)

        result, detail = context.remembered_graph(name, "network", key, _Kept, make)
        for item in detail.kept:
            context.find("cast", f"node {item.node!r} stays in FP32: {item.reason}")
        return result

    network = stage(f"cast to {low}", emulated=False)
    # On a processor ONNX Runtime has no BF16 kernels, and computes FP16 graphs in FP32 without
    # the roundings between their nodes: an overflow would go unseen. The twin has them in it.
    twin = stage("cast for the twin", emulated=True)
    return Network(graph=network, twin=twin, fused=False, rows=())
