"""The stage that packs weights into blocks of 4 bits, for one backend each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.backends.scheme import WeightScheme
from trtbuild.engine import Value
from trtbuild.errors import BuildError
from trtbuild.graph.cost import count_macs
from trtbuild.pipeline.cast import Lowering, lowered, scanned
from trtbuild.pipeline.keeping import assigned, kept_nodes
from trtbuild.pipeline.network import Network
from trtbuild.quantization import weight_only
from trtbuild.quantization.weight_only import Packed, Unpacked

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.source import Data

_MOST = 0.5
"""Below this share of packed work, a reader should be told that most of it is not."""


class _PackKey(Value, frozen=True, kw_only=True):
    graph_sha256: str
    scheme: WeightScheme
    block: int
    keep_float: tuple[str, ...]
    version: int


class _Detail(Value, frozen=True, kw_only=True):
    packed: tuple[Packed, ...]
    unpacked: tuple[Unpacked, ...]


class _UnpackKey(Value, frozen=True, kw_only=True):
    graph_sha256: str
    version: int


class _Nothing(Value, frozen=True, kw_only=True):
    """What a stage finds out that finds out nothing beside its graph."""


def packed(context: Context, graph: Graph, data: Data | None, scheme: WeightScheme) -> Network:
    """Return the network whose weights ``scheme`` packs; activations are ``scheme.rest``.

    Data is not needed: it only tells which tensors would overflow in FP16.

    Raises:
        BuildError: the model has no weight that can be packed.
    """
    written = _written(context, graph, scheme)
    if scheme.rest == "fp32":
        return Network(graph=written, twin=_unpacked(context, written), fused=False, rows=())
    lowering = Lowering(
        precision=scheme.rest,
        extremes=scanned(context, graph, data, scheme.rest),
        keep_float=assigned(context, graph).fp32,
        twin=_unpacked(context, written),
    )
    return lowered(context, written, lowering)


def _written(context: Context, graph: Graph, scheme: WeightScheme) -> Graph:
    block = context.recipe.quantization.block_size
    packing = weight_only.Packing(
        scheme=scheme, block=block, keep_float=kept_nodes(context, graph)
    )
    key = _PackKey(
        graph_sha256=graph.sha256,
        scheme=scheme,
        block=packing.block,
        keep_float=tuple(sorted(packing.keep_float)),
        version=weight_only.VERSION,
    )

    def make(out: Path) -> tuple[Graph, _Detail]:
        result, done, left = weight_only.pack(graph, packing, out)
        return result, _Detail(packed=done, unpacked=left)

    name = f"pack weights for {scheme.name}"
    result, detail = context.remembered_graph(name, "network", key, _Detail, make)
    for item in detail.unpacked:
        context.find("pack", f"node {item.node!r} keeps its weight: {item.reason}")
    if not detail.packed:
        raise BuildError(
            f"{context.recipe.name}: no weight can be packed to {scheme.format}: the graph has "
            f"no {' or '.join(scheme.compute)} with a constant float32 matrix whose inputs "
            f"make whole blocks (or keep_float names them all). Ask for int8, fp8 or fp16"
        )
    macs = count_macs(graph, ())
    share = sum(macs.get(item.node, 0) for item in detail.packed) / max(1, sum(macs.values()))
    if share < _MOST:
        context.find(
            "pack",
            f"only {100 * share:.0f} % of the multiply-accumulates read {scheme.format} "
            f"weights: {' and '.join(scheme.compute)} with constant matrices are packed, "
            f"nothing else. For the rest, ask for int8 or fp8",
        )
    smaller = sum(item.block < packing.block for item in detail.packed)
    if scheme.format == "int4" and smaller:
        context.find(
            "pack",
            f"{smaller} of {len(detail.packed)} weights are in smaller blocks than "
            f"{packing.block}, which do not divide their inputs",
        )
    return result


def _unpacked(context: Context, graph: Graph) -> Graph:
    key = _UnpackKey(graph_sha256=graph.sha256, version=weight_only.VERSION)

    def make(out: Path) -> tuple[Graph, _Nothing]:
        return weight_only.unpack(graph, out), _Nothing()

    return context.remembered_graph("unpack for the twin", "network", key, _Nothing, make)[0]
