"""What each calibration method costs in accuracy: a Markdown table of recipes x schemes x rows.

    .venv/bin/python -m tests.benchmarks.accuracy engines/*.toml

Every row is a quantized graph that runs on ONNX Runtime: for ``onnxruntime`` as its engine
does, with integer kernels; for ``tensorrt-rtx`` as its twin does, with the arithmetic that is
written in the graph. The reference is the same graph before quantization. All rows of a recipe
and scheme are judged on the same evaluation batches, those that did not choose for ``auto``.
``drop`` is of the provider's metric, with its 95 % interval; SQNR is that of the worst output.

Another technique or format is one more entry of ``ROWS``.
"""

from __future__ import annotations

import functools
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
from trtbuild.pipeline.quantizing import measured, quantized
from trtbuild.pipeline.simplify import optimized
from trtbuild.pipeline.source import export_source, open_data
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
    from trtbuild.quantization.ranges import Ranges
    from trtbuild.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a row may use: the run, the simplified graph, its data and ranges, and a scheme.

    ``auto`` is the network that the pipeline chose for the recipe with ``method = "auto"``.
    """

    context: Context
    graph: Graph
    data: Data
    metric: Metric
    ranges: Ranges
    scheme: Scheme
    auto: Network


def by_method(bench: Bench, method: str) -> tuple[str, Graph]:
    """Return the graph with one method's thresholds in every tensor."""
    keep_float = bench.context.recipe.quantization.keep_float
    placement = quantizer.placement_of(bench.graph, bench.scheme, keep_float)
    values = thresholds(bench.ranges, placement.observed, method, bench.scheme)
    out = bench.context.work / f"{bench.scheme.name}-{method}.onnx"
    plan = Plan(graph=bench.graph, placement=placement, intervals=values)
    return method, plan.write(bench.scheme, out)


def by_choice(bench: Bench) -> tuple[str, Graph]:
    """Return the graph that ``auto`` builds, and what it chose."""
    chosen = next(row.method for row in bench.auto.rows if row.chosen)
    return f"auto ({chosen})", bench.auto.twin


ROWS: tuple[Callable[[Bench], tuple[str, Graph]], ...] = (
    *(functools.partial(by_method, method=method) for method in METHODS),
    by_choice,
)
"""Each returns its label and a quantized graph."""


def benches(context: Context) -> tuple[Bench, ...]:
    """Export and calibrate once; return what the rows of each scheme use."""
    data = open_data(context)
    if data is None or data.provider.metric is None:
        sys.exit(f"{context.recipe.name}: the recipe names no provider with a metric")
    graph = optimized(context, export_source(context, data).graph)
    ranges, _ = measured(context, graph, data)
    schemes = tuple(backend(name).SCHEME for name in NAMES)
    networks = quantized(context, graph, data, schemes, cache=None)
    return tuple(
        Bench(
            context=context,
            graph=graph,
            data=data,
            metric=data.provider.metric,
            ranges=ranges,
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
        },
        judging(bench.data, bench.graph, bench.auto),
        bench.metric,
    )
    start = f"| {bench.context.recipe.name} | {bench.scheme.name} |"
    print(f"{start} FP32 | {result.reference_scores.mean():.4f} | | |")
    for label, candidate in result.candidates.items():
        drop = estimate(
            result.reference_scores,
            candidate.scores,
            higher_is_better=bench.metric.higher_is_better,
        ).drop
        shown = f"{drop.value:+.4f} [{drop.low:+.4f}, {drop.high:+.4f}]" if drop else "infinite"
        sqnr = f"{trial(label, candidate).sqnr_db:.1f}"
        print(f"{start} {label} | {candidate.scores.mean():.4f} | {shown} | {sqnr} |")


def with_auto(recipe: Recipe) -> Recipe:
    """Return ``recipe`` with the method that the row ``auto`` shows."""
    table = msgspec.structs.replace(recipe.quantization, method="auto")
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
