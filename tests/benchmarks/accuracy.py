"""What methods and techniques cost in accuracy: a Markdown table of recipes x schemes x rows.

    .venv/bin/python -m tests.benchmarks.accuracy engines/*.toml

Every row is a quantized graph that runs on ONNX Runtime: for ``onnxruntime`` as its engine
does, with integer kernels; for ``tensorrt-rtx`` as its twin does, with the arithmetic that is
written in the graph. The reference is the same graph before quantization. All rows of a recipe
and scheme are judged on the same evaluation batches, those that did not choose for ``auto``.
``drop`` is of the provider's metric, with its 95 % interval; SQNR is that of the worst output.

Each technique is applied over the uniform method of highest SQNR on the batches that choose.
Every row quantizes the same nodes; what a policy keeps in floating point is no part of this.
Another technique or format is one more entry of ``ROWS``.
"""

from __future__ import annotations

import functools
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trtbuild.backends import NAMES, backend
from trtbuild.backends.ort_session import open_graph
from trtbuild.pipeline.choice import trial
from trtbuild.pipeline.context import working
from trtbuild.pipeline.held_out import judging
from trtbuild.pipeline.quantizing import quantized
from trtbuild.pipeline.ranges import ranges_for
from trtbuild.pipeline.simplify import optimized
from trtbuild.pipeline.source import export_source, open_data
from trtbuild.pipeline.techniques import ADJUSTING, MIGRATING, Adjusting, migrated
from trtbuild.pipeline.trials import Plan
from trtbuild.quantization import quantize as quantizer
from trtbuild.quantization.methods import METHODS
from trtbuild.quantization.thresholds import thresholds
from trtbuild.recipe import load_recipe
from trtbuild.store import Store
from trtbuild.verification.accuracy import compare
from trtbuild.verification.bootstrap import estimate

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.backends.scheme import Scheme
    from trtbuild.batches import Metric
    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.network import Network
    from trtbuild.pipeline.source import Data
    from trtbuild.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a row may use: the run, the simplified graph, its data, and a scheme.

    ``auto`` is the network that the pipeline chose for the recipe with ``method = "auto"``.
    """

    context: Context
    graph: Graph
    data: Data
    metric: Metric
    scheme: Scheme
    auto: Network


def by_method(bench: Bench, method: str) -> tuple[str, Graph | None]:
    """Return the graph with one method's thresholds in every tensor."""
    out = bench.context.work / f"{bench.scheme.name}-{method}.onnx"
    return method, plan_of(bench, bench.graph, method).write(bench.scheme, out)


def by_technique(bench: Bench, technique: str) -> tuple[str, Graph | None]:
    """Return the graph with one technique over the best method, None where it changes nothing.

    ``rounding+bias`` is both, in the order in which a recipe's list applies them.
    """
    method = best_method(bench)
    plan: Plan | None = plan_of(bench, bench.graph, method)
    adjusting = Adjusting(
        context=bench.context, data=bench.data, scheme=bench.scheme, original=bench.graph
    )
    for word in technique.split("+"):
        if plan is None:
            break
        if word in MIGRATING:
            moved = migrated(bench.context, plan.graph, bench.data, plan.placement, word)
            plan = plan_of(bench, moved, method) if moved is not None else None
        else:
            plan = adjusting.adjusted(plan, word)
    label = f"{method} + {technique}"
    if plan is None:
        return label, None
    return label, plan.write(
        bench.scheme, bench.context.work / f"{bench.scheme.name}-{label}.onnx"
    )


def best_method(bench: Bench) -> str:
    """Return the uniform method of highest SQNR on the batches that choose."""
    figures = {row.method: row.sqnr_db for row in bench.auto.rows if row.method in METHODS}
    return max(figures, key=lambda method: figures[method] or -math.inf)


def plan_of(bench: Bench, graph: Graph, method: str) -> Plan:
    """Return how to quantize ``graph``, the recipe's or one that a technique made of it."""
    keep_float = bench.context.recipe.quantization.keep_float
    placement = quantizer.placement_of(graph, bench.scheme, keep_float)
    ranges, _ = ranges_for(bench.context, graph, bench.data, bench.scheme, placement)
    values = thresholds(ranges, placement.observed, method, bench.scheme)
    return Plan(graph=graph, placement=placement, intervals=values)


def by_choice(bench: Bench) -> tuple[str, Graph | None]:
    """Return the graph that ``auto`` builds, and what it chose."""
    chosen = next(row.method for row in bench.auto.rows if row.chosen)
    return f"auto ({chosen})", bench.auto.twin


TECHNIQUES = (*MIGRATING, *ADJUSTING, "rounding+bias")

ROWS: tuple[Callable[[Bench], tuple[str, Graph | None]], ...] = (
    *(functools.partial(by_method, method=method) for method in METHODS),
    *(functools.partial(by_technique, technique=technique) for technique in TECHNIQUES),
    by_choice,
)
"""Each returns its label and a quantized graph, None where there is nothing to change."""


def benches(context: Context) -> tuple[Bench, ...]:
    """Export and calibrate once; return what the rows of each scheme use."""
    data = open_data(context)
    if data is None or data.provider.metric is None:
        sys.exit(f"{context.recipe.name}: the recipe names no provider with a metric")
    graph = optimized(context, export_source(context, data).graph)
    schemes = tuple(backend(name).SCHEME for name in NAMES)
    networks = quantized(context, graph, data, schemes, cache=None)
    return tuple(
        Bench(
            context=context,
            graph=graph,
            data=data,
            metric=data.provider.metric,
            scheme=scheme,
            auto=networks[scheme.name],
        )
        for scheme in schemes
    )


def measure(bench: Bench) -> None:
    """Print the rows of one recipe and scheme."""
    graphs = dict(row(bench) for row in ROWS)
    result = compare(
        open_graph(bench.graph.path, fused=True),
        {
            label: open_graph(graph.path, fused=bench.auto.fused)
            for label, graph in graphs.items()
            if graph is not None
        },
        judging(bench.data, bench.graph, bench.auto),
        bench.metric,
    )
    start = f"| {bench.context.recipe.name} | {bench.scheme.name} |"
    print(f"{start} FP32 | {result.reference_scores.mean():.4f} | | |")
    for label, graph in graphs.items():
        if graph is None:
            print(f"{start} {label} | nothing to change | | |")
            continue
        candidate = result.candidates[label]
        drop = estimate(
            result.reference_scores,
            candidate.scores,
            higher_is_better=bench.metric.higher_is_better,
        ).drop
        shown = f"{drop.value:+.4f} [{drop.low:+.4f}, {drop.high:+.4f}]" if drop else "infinite"
        sqnr = f"{trial(label, candidate).sqnr_db:.1f}"
        print(f"{start} {label} | {candidate.scores.mean():.4f} | {shown} | {sqnr} |")


def with_auto(recipe: Recipe) -> Recipe:
    """Return ``recipe`` as the row ``auto`` shows it, with the nodes of the other rows."""
    table = msgspec.structs.replace(
        recipe.quantization, method="auto", techniques="auto", policy="all"
    )
    return msgspec.structs.replace(recipe, quantization=table)


def main() -> None:
    """Print the table of the recipes named on the command line."""
    print("| recipe | scheme | method | metric | drop [95 % interval] | SQNR, dB |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder)
        for path in sys.argv[1:]:
            recipe = with_auto(load_recipe(Path(path)))
            with working(recipe, store, lambda _: None) as context:
                for bench in benches(context):
                    measure(bench)


if __name__ == "__main__":
    main()
