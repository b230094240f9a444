"""The stage that converts a graph, or what is around its quantized layers, to FP16 or BF16."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from trtbuild.engine import Value
from trtbuild.pipeline.keeping import kept_nodes
from trtbuild.pipeline.network import Network
from trtbuild.pipeline.ranges import extremes_of
from trtbuild.quantization import casting

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.source import Data

Low = Literal["fp16", "bf16"]


class _CastKey(Value, frozen=True, kw_only=True):
    graph_sha256: str
    extremes_sha256: str
    precision: str
    keep_float: tuple[str, ...]
    wide: tuple[str, ...]
    emulated: bool
    version: int


class _Kept(Value, frozen=True, kw_only=True):
    kept: tuple[casting.Kept, ...]


@dataclass(frozen=True, kw_only=True)
class Extremes:
    """The largest magnitude of each tensor, and the digest of all; empty if not measured."""

    amax: Mapping[str, float] = field(default_factory=dict)
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """How to convert a graph: the type, and the nodes that stay in FP32.

    ``wide`` are those that nobody asked for, but their sums. ``twin`` is the graph that stands
    for the converted one where it cannot run; None if the converted graph's own does.
    """

    precision: Low
    extremes: Extremes
    keep_float: frozenset[str] = frozenset()
    wide: frozenset[str] = frozenset()
    twin: Graph | None = None


def cast(context: Context, graph: Graph, data: Data | None, precision: Low) -> Network:
    """Return the FP16 or BF16 network, overflowing nodes kept in FP32."""
    lowering = Lowering(
        precision=precision,
        extremes=scanned(context, graph, data, precision),
        keep_float=kept_nodes(context, graph),
    )
    return lowered(context, graph, lowering)


def scanned(context: Context, graph: Graph, data: Data | None, precision: Low) -> Extremes:
    """Return what decides which nodes would overflow; BF16 has FP32's range: nothing does."""
    if precision == "bf16":
        return Extremes()
    if data is None:
        context.find("cast", "ranges were not scanned for overflow in FP16: there is no data")
        return Extremes()
    amax, sha256 = extremes_of(context, graph, data, casting.float_tensors(graph))
    return Extremes(amax=amax, sha256=sha256)


def lowered(context: Context, graph: Graph, lowering: Lowering) -> Network:
    """Return the network of ``graph`` in low precision, and a twin with its roundings."""
    low = lowering.precision

    def stage(name: str, source: Graph, *, emulated: bool) -> Graph:
        plan = casting.Casting(
            precision=low,
            amax=lowering.extremes.amax,
            keep_float=lowering.keep_float,
            wide=lowering.wide,
            emulated=emulated,
        )
        key = _CastKey(
            graph_sha256=source.sha256,
            extremes_sha256=lowering.extremes.sha256,
            precision=low,
            keep_float=tuple(sorted(lowering.keep_float)),
            wide=tuple(sorted(lowering.wide)),
            emulated=emulated,
            version=casting.VERSION,
        )

        def make(out: Path) -> tuple[Graph, _Kept]:
            result, kept_nodes = casting.cast_graph(source, plan, out)
            return result, _Kept(kept=kept_nodes)

        result, detail = context.remembered_graph(name, "network", key, _Kept, make)
        for item in detail.kept:
            context.find("cast", f"node {item.node!r} stays in FP32: {item.reason}")
        return result

    network = stage(f"cast to {low}", graph, emulated=False)
    # On a processor ONNX Runtime has no BF16 kernels, and computes FP16 graphs in FP32 without
    # the roundings between their nodes: an overflow would go unseen. The twin has them in it.
    twin = stage("cast for the twin", lowering.twin or graph, emulated=True)
    return Network(graph=network, twin=twin, fused=False, rows=())
