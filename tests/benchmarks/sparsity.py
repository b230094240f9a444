"""What 2:4 sparsity costs the recipes' models: by magnitude, times input, and compensated.

Usage: python -m tests.benchmarks.sparsity [RECIPE.toml ...]

For each recipe: the metric over all evaluation data of the floating-point model, of three
pruned ones, and of the last one in INT8 in TensorRT's form (plain max), and the SQNR of the
worst output against the dense model. No figure is a time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trtbuild.backends import tensorrt_rtx
from trtbuild.backends.ort_session import open_graph
from trtbuild.pipeline.context import working
from trtbuild.pipeline.ranges import ranges_of
from trtbuild.pipeline.simplify import optimized
from trtbuild.pipeline.source import calibration, evaluation, export_source, open_data
from trtbuild.quantization.input_products import Pass, second_moments
from trtbuild.quantization.prune import broken, prunable, prune
from trtbuild.quantization.quantize import placement_of, quantize
from trtbuild.quantization.thresholds import thresholds
from trtbuild.recipe import load_recipe
from trtbuild.store import Store
from trtbuild.verification.accuracy import compare

if TYPE_CHECKING:
    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.source import Data
    from trtbuild.quantization.prune import Pruned

RECIPES = tuple(f"engines/{name}-int8.toml" for name in ("digits", "minilm", "xfeat"))


def main() -> None:
    print("| model | 2:4 layers | weights | weights by | metric | drop | SQNR dB |")
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: |")
    for name in sys.argv[1:] or RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            recipe = load_recipe(Path(name))
            with working(recipe, Store.open(folder), lambda _: None) as context:
                measure(context)


def measure(context: Context) -> None:
    data = open_data(context)
    if data is None or data.provider.metric is None:
        raise SystemExit(f"{context.recipe.name}: expected data with a metric")
    graph = optimized(context, export_source(context, data).graph)
    started = time.perf_counter()
    over = Pass(
        batches=lambda: calibration(data, graph), work=context.work, progress=lambda _: None
    )
    found: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
    for group in second_moments(graph, prunable(graph, ()), over):
        found |= group
    moments_s = time.perf_counter() - started
    # With moments of single inputs alone there is nothing that others could make up for.
    alone = {name: np.diag(np.diag(moment)) for name, moment in found.items()}
    pruned: dict[str, tuple[Graph, Pruned]] = {
        "magnitude": prune(graph, (), (), context.work / "a.onnx"),
        "magnitude times input": prune(graph, (), [alone], context.work / "b.onnx"),
    }
    started = time.perf_counter()
    made, told = prune(graph, (), [found], context.work / "c.onnx")
    print(
        f"{context.recipe.name}: moments {moments_s:.1f} s, prune "
        f"{time.perf_counter() - started:.1f} s",
        file=sys.stderr,
    )
    pruned["the same, compensated"] = (made, told)
    graphs = {"dense": graph, **{name: each for name, (each, _) in pruned.items()}}
    for name, each in (("dense, INT8", graph), ("compensated, INT8", made)):
        graphs[name] = int8(context, data, each)
    if broken(graphs["compensated, INT8"], tuple(each.node for each in told.sparse)):
        raise SystemExit("the INT8 network is not sparse")
    report(context, data, graphs, told)


def int8(context: Context, data: Data, graph: Graph) -> Graph:
    """Return the network as TensorRT gets it, by plain max."""
    keep_float = context.recipe.quantization.keep_float
    placement = placement_of(graph, tensorrt_rtx.SCHEME, keep_float)
    ranges, _ = ranges_of(context, graph, data, placement.observed)
    limits = thresholds(ranges, placement.observed, "minmax", tensorrt_rtx.SCHEME)
    out = context.work / f"int8-{graph.path.stem}.onnx"
    return quantize(graph, placement, limits, tensorrt_rtx.SCHEME, out)


def report(context: Context, data: Data, graphs: dict[str, Graph], told: Pruned) -> None:
    reference = graphs["dense"]
    first = 0.0
    for name, graph in graphs.items():
        fused = "INT8" not in name
        result = compare(
            open_graph(reference.path, fused=True),
            {name: open_graph(graph.path, fused=fused)},
            evaluation(data, reference),
            data.provider.metric,
        ).candidates[name]
        metric = float(result.scores.mean())
        first = metric if name == "dense" else first
        noise = [each.sqnr_db for each in result.errors if each.sqnr_db is not None]
        layers, weights = "", ""
        if not name.startswith("dense"):
            layers = f"{len(told.sparse)} of {len(told.sparse) + len(told.dense)}"
            share = sum(each.weights for each in told.sparse) / told.weights
            weights = f"{100 * share:.1f} %"
        worst = f"{min(noise):.1f}" if noise else "exact"
        model = context.recipe.name.removesuffix("-int8")
        print(
            f"| {model} | {layers} | {weights} | {name} | {metric:.4f} | {first - metric:+.4f} "
            f"| {worst} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
