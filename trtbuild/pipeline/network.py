"""The middle stages: simplify, measure ranges, choose thresholds, write Q/DQ or casts."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trtbuild.backends import NAMES, backend
from trtbuild.backends.fingerprint import version
from trtbuild.backends.ort_session import open_graph
from trtbuild.backends.scheme import Scheme
from trtbuild.engine import Value
from trtbuild.errors import BuildError, RecipeError
from trtbuild.graph import optimize as optimizer
from trtbuild.graph.model import load_model
from trtbuild.pipeline.choice import HELD_OUT_EVERY, PLAIN_MAX, choose, trial
from trtbuild.pipeline.choice import VERSION as RULE
from trtbuild.pipeline.ranges import ranges_for, ranges_of
from trtbuild.pipeline.source import evaluation
from trtbuild.quantization import casting
from trtbuild.quantization import quantize as quantizer
from trtbuild.quantization.methods import candidates
from trtbuild.quantization.thresholds import thresholds, thresholds_digest
from trtbuild.report.document import CalibrationRow
from trtbuild.verification.accuracy import compare

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trtbuild.backends import Session
    from trtbuild.batches import Batch
    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.source import Data
    from trtbuild.quantization.placement import Placement
    from trtbuild.quantization.ranges import Ranges
    from trtbuild.quantization.thresholds import Thresholds
    from trtbuild.verification.accuracy import Candidate

_NAIVE = f"{PLAIN_MAX}, no node kept"
"""The row of the calibration table that shows what keep_float is for."""

_TRIAL_BYTES = 1 << 30
"""Models that are tried at the same time, by the size of their files in all."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """The graph that a backend builds, and how to run it where the target's device is absent.

    ``fused`` is whether that run may use integer kernels: true only where the backend's own
    engine does on this machine.
    """

    graph: Graph
    twin: Graph
    fused: bool
    rows: tuple[CalibrationRow, ...]


class _OptimizeKey(Value, frozen=True, kw_only=True):
    source_sha256: str
    version: int
    packages: tuple[tuple[str, str], ...]


class _ChoiceKey(Value, frozen=True, kw_only=True):
    graph_sha256: str
    scheme: Scheme
    thresholds: tuple[tuple[str, str], ...]
    keep_float: tuple[str, ...]
    evaluation_sha256: str
    metric_sha256: str
    runtime: str
    version: int
    rule: int


class _Choice(Value, frozen=True, kw_only=True):
    method: str
    rows: tuple[CalibrationRow, ...]


@dataclass(frozen=True, kw_only=True)
class _Naive:
    """Quantization as it would be with every node quantized by plain max."""

    placement: Placement
    intervals: Thresholds


class _NetworkKey(Value, frozen=True, kw_only=True):
    graph_sha256: str
    thresholds_sha256: str
    scheme: Scheme
    keep_float: tuple[str, ...]
    version: int


class _CastKey(Value, frozen=True, kw_only=True):
    graph_sha256: str
    ranges_sha256: str
    precision: str
    keep_float: tuple[str, ...]
    emulated: bool
    version: int


class _Nothing(Value, frozen=True, kw_only=True):
    """A stage that finds out nothing beside its graph."""


class _Changes(Value, frozen=True, kw_only=True):
    changes: tuple[optimizer.PassChange, ...]


class _Kept(Value, frozen=True, kw_only=True):
    kept: tuple[casting.Kept, ...]


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


def quantized(
    context: Context, graph: Graph, data: Data, schemes: tuple[Scheme, ...]
) -> dict[str, Network]:
    """Return the INT8 network of each scheme, by its name.

    Raises:
        BuildError: the model is quantized already, or has nothing to quantize.
        DataError: the data does not fit the model, or activations are not finite.
    """
    placements = _placements(context, graph, schemes)
    ranges, _ = ranges_for(context, graph, data, schemes, placements.values())
    networks = {}
    for scheme in schemes:
        work = _Quantizing(context, graph, data, scheme, placements[scheme.name])
        networks[scheme.name] = work.network(ranges)
    return networks


def measured(context: Context, graph: Graph, data: Data) -> tuple[Ranges, str]:
    """Return the ranges that any backend needs to quantize ``graph``, and their digest.

    Raises:
        BuildError: the model is quantized already, or has nothing to quantize.
        DataError: the data does not fit the model, or activations are not finite.
    """
    schemes = tuple(backend(name).SCHEME for name in NAMES)
    placements = _placements(context, graph, schemes)
    return ranges_for(context, graph, data, schemes, placements.values())


def cast(context: Context, graph: Graph, data: Data | None) -> Network:
    """Return the FP16 or BF16 network, overflowing nodes kept in FP32."""
    precision = context.recipe.quantization.precision
    low: Literal["fp16", "bf16"] = "bf16" if precision == "bf16" else "fp16"
    ranges: Ranges = {}
    ranges_sha256 = ""
    if data is not None and low == "fp16":
        tensors = casting.float_tensors(graph)
        ranges, ranges_sha256 = ranges_of(context, graph, data, tensors, "leave out")
    elif low == "fp16":
        context.find("cast", "ranges were not scanned for overflow in FP16: there is no data")
    nodes = [node.name or "" for node in load_model(graph.path).graph]
    kept = _kept(context, nodes)

    def stage(name: str, *, emulated: bool) -> Graph:
        plan = casting.Casting(
            precision=low,
            amax={tensor: found.amax for tensor, found in ranges.items()},
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


def _kept(context: Context, nodes: list[str]) -> frozenset[str]:
    """Return the nodes that the recipe keeps in floating point.

    Raises:
        RecipeError: a pattern fits no node: a typing mistake would quantize what it names.
    """
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


def _placements(
    context: Context, graph: Graph, schemes: tuple[Scheme, ...]
) -> dict[str, Placement]:
    keep_float = context.recipe.quantization.keep_float
    placements = {s.name: quantizer.placement_of(graph, s, keep_float) for s in schemes}
    _kept(context, [node.name or "" for node in load_model(graph.path).graph])
    for placement in placements.values():
        _expect_nodes(context, placement)
    return placements


def _expect_nodes(context: Context, placement: Placement) -> None:
    if not placement.nodes:
        raise BuildError(
            f"{context.recipe.name}: nothing can be quantized: the graph has no Conv, Gemm or "
            f"MatMul with constant float32 weights (or keep_float names them all). "
            f"Export the model with its weights, or ask for fp16"
        )


class _Quantizing:
    """One scheme on its way from ranges to a Q/DQ graph."""

    def __init__(
        self, context: Context, graph: Graph, data: Data, scheme: Scheme, placement: Placement
    ) -> None:
        self._context = context
        self._graph = graph
        self._data = data
        self._scheme = scheme
        self._placement = placement
        # The twin of a TensorRT graph must compute what is written; integer kernels are what
        # an asymmetric engine runs on this machine.
        self._fused = scheme.activation == "uint8"

    def network(self, ranges: Ranges) -> Network:
        methods = candidates(self._context.recipe.quantization.method)
        intervals = {
            method: thresholds(ranges, self._placement.observed, method, self._scheme)
            for method in methods
        }
        choice = self._choice(intervals, self._nothing_kept(ranges))
        graph = self._written(intervals[choice.method])
        return Network(graph=graph, twin=graph, fused=self._fused, rows=choice.rows)

    def _nothing_kept(self, ranges: Ranges) -> _Naive | None:
        """Return plain max on every node, to show what keep_float is for; None without it."""
        if not self._context.recipe.quantization.keep_float:
            return None
        placement = quantizer.placement_of(self._graph, self._scheme, ())
        values = thresholds(ranges, placement.observed, PLAIN_MAX, self._scheme)
        return _Naive(placement=placement, intervals=values)

    def _written(self, intervals: Thresholds) -> Graph:
        key = _NetworkKey(
            graph_sha256=self._graph.sha256,
            thresholds_sha256=thresholds_digest(intervals),
            scheme=self._scheme,
            keep_float=self._context.recipe.quantization.keep_float,
            version=quantizer.VERSION,
        )

        def make(out: Path) -> tuple[Graph, _Nothing]:
            return self._quantize(intervals, out), _Nothing()

        name = f"quantize for {self._scheme.name}"
        return self._context.remembered_graph(name, "network", key, _Nothing, make)[0]

    def _quantize(self, intervals: Thresholds, out: Path) -> Graph:
        return quantizer.quantize(self._graph, self._placement, intervals, self._scheme, out)

    def _choice(self, intervals: dict[str, Thresholds], naive: _Naive | None) -> _Choice:
        if len(intervals) == 1:
            method = next(iter(intervals))
            row = CalibrationRow(
                method=method, scheme=self._scheme.name, metric=None, sqnr_db=None, chosen=True
            )
            return _Choice(method=method, rows=(row,))
        key = _ChoiceKey(
            graph_sha256=self._graph.sha256,
            scheme=self._scheme,
            thresholds=tuple(
                (method, thresholds_digest(values)) for method, values in intervals.items()
            ),
            keep_float=self._context.recipe.quantization.keep_float,
            evaluation_sha256=self._data.info.evaluation_sha256,
            metric_sha256=self._data.info.metric_sha256,
            runtime=f"onnxruntime {version('onnxruntime')}",
            version=quantizer.VERSION,
            rule=RULE,
        )
        name = f"choose method for {self._scheme.name}"
        return self._context.remembered(
            name, "choice", key, _Choice, lambda: self._try(intervals, naive)
        )

    def _try(self, intervals: dict[str, Thresholds], naive: _Naive | None) -> _Choice:
        """Quantize with every method, and run them all against the unquantized graph."""
        with self._context.store.scratch() as folder:
            same: dict[str, list[str]] = {}
            for method, values in intervals.items():
                same.setdefault(thresholds_digest(values), []).append(method)
            graphs = {
                names[0]: self._quantize(intervals[names[0]], folder / f"{names[0]}.onnx")
                for names in same.values()
            }
            if naive is not None:
                graphs[_NAIVE] = quantizer.quantize(
                    self._graph,
                    naive.placement,
                    naive.intervals,
                    self._scheme,
                    folder / "naive.onnx",
                )
            reference = open_graph(self._graph.path, fused=True)
            metric = self._data.provider.metric
            found: dict[str, Candidate] = {}
            for group in _groups(graphs):
                self._context.say(f"try {', '.join(group)} for {self._scheme.name}")
                sessions: dict[str, Session] = {
                    method: open_graph(graphs[method].path, fused=self._fused)
                    for method in group
                }
                result = compare(reference, sessions, held_out(self._data, self._graph), metric)
                found.update(result.candidates)
        twins = {name: names[0] for names in same.values() for name in names}
        trials = [trial(method, found[twins[method]]) for method in intervals]
        chosen = choose(trials, metric)
        trials += [trial(_NAIVE, found[_NAIVE])] if naive is not None else []
        rows = tuple(
            CalibrationRow(
                method=each.method,
                scheme=self._scheme.name,
                metric=each.metric,
                sqnr_db=each.sqnr_db if abs(each.sqnr_db) != float("inf") else None,
                chosen=each is chosen,
            )
            for each in trials
        )
        return _Choice(method=chosen.method, rows=rows)


def _groups(graphs: dict[str, Graph]) -> Iterator[list[str]]:
    """Yield the names of graphs that fit into memory together."""
    group: list[str] = []
    total = 0
    for name, graph in graphs.items():
        size = graph.path.stat().st_size
        if group and total + size > _TRIAL_BYTES:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    yield group


def held_out(data: Data, graph: Graph) -> Iterator[Batch]:
    """Yield the evaluation batches that choose a method: every fourth, all if there are few."""
    batches = evaluation(data, graph)
    if data.info.evaluation_batches < HELD_OUT_EVERY:
        return batches
    return itertools.islice(batches, HELD_OUT_EVERY - 1, None, HELD_OUT_EVERY)


def judging(data: Data, graph: Graph, network: Network) -> Iterator[Batch]:
    """Yield the evaluation batches that judge an engine: those that did not choose for it."""
    batches = evaluation(data, graph)
    if len(network.rows) < 2 or data.info.evaluation_batches < HELD_OUT_EVERY:  # noqa: PLR2004  one row is no choice
        return batches
    kept = (index % HELD_OUT_EVERY != HELD_OUT_EVERY - 1 for index in itertools.count())
    return itertools.compress(batches, kept)
