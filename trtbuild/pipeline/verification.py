"""The last stages: compare engines with the framework, time them, and judge them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from trtbuild.backends import runtime
from trtbuild.backends.fingerprint import version
from trtbuild.backends.ort_session import open_graph
from trtbuild.batches import rechunk
from trtbuild.canonical import digest
from trtbuild.engine import Value
from trtbuild.pipeline.network import judging
from trtbuild.pipeline.source import calibration, reference_session
from trtbuild.report.document import LatencyMs, Verification, summarize
from trtbuild.store import make_record
from trtbuild.verify.accuracy import compare
from trtbuild.verify.bootstrap import estimate
from trtbuild.verify.gates import Evidence, judge
from trtbuild.verify.latency import LatencyPlan, measure, speedup
from trtbuild.verify.results import MetricEstimate, Speedup, TensorErrors

if TYPE_CHECKING:
    from trtbuild.backends import Session
    from trtbuild.batches import Array, Metric
    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.engines import Built
    from trtbuild.pipeline.network import Network
    from trtbuild.pipeline.source import Data, ExportedSource
    from trtbuild.verify.accuracy import Candidate, Comparison

VERSION = 1
"""Part of the key of measurements; raised when they start to mean something else."""


class _AccuracyKey(Value, frozen=True, kw_only=True):
    """``subject`` is an engine on its device, or the graph that its twin runs."""

    subject_sha256: str
    measured_on: Literal["device", "twin"]
    fused: bool
    source_key: str
    evaluation_sha256: str
    metric_sha256: str
    judged: bool
    runtime: str
    version: int


class Accuracy(Value, frozen=True, kw_only=True):
    """What an engine computes, compared with the framework."""

    samples: int
    outputs: tuple[TensorErrors, ...]
    metrics: dict[str, MetricEstimate]


class _LatencyKey(Value, frozen=True, kw_only=True):
    engine_sha256: str
    baseline_sha256: str
    evaluation_sha256: str
    machine: str
    plan: LatencyPlan
    version: int


class Timing(Value, frozen=True, kw_only=True):
    """The latency of an engine and of its baseline, measured in turns in one run."""

    latency: LatencyMs
    baseline: LatencyMs | None
    speedup: Speedup | None


def measured_on(built: Built) -> Literal["device", "twin"]:
    """Return whether an engine runs here itself, or its twin in its place."""
    return "twin" if built.planned.cannot_run else "device"


def accuracies(
    context: Context,
    source: ExportedSource,
    data: Data,
    engines: list[tuple[Built, Network]],
    *,
    fresh: bool,
) -> list[Accuracy]:
    """Return how each engine compares with the framework; all that is missing in one pass.

    Engines that share a twin share its figures. ``fresh`` measures again what is known.
    """
    started = time.perf_counter()
    keys = [_accuracy_key(source, data, built, network) for built, network in engines]
    names = [digest("report/v1", key) for key in keys]
    known: dict[str, Accuracy] = {}
    if not fresh:
        for name in names:
            record = context.store.get("report", name, Accuracy)
            if record is not None:
                known[name] = record.read(Accuracy)
    missing = {
        name: engine for name, engine in zip(names, engines, strict=True) if name not in known
    }
    if missing:
        known |= _compared(context, source, data, missing)
        for name, key in zip(names, keys, strict=True):
            if name in missing and not fresh:
                context.store.put(make_record("report", name, key, known[name]))
    context.log("verify", digest("reports/v1", names), started, cached=not missing)
    return [known[name] for name in names]


def timing(
    context: Context, data: Data, graph: Graph, engine: Built, baseline: Built | None
) -> Timing:
    """Return the latency of an engine that runs here, against its baseline if it has one."""
    plan = LatencyPlan()
    key = _LatencyKey(
        engine_sha256=engine.manifest.sha256,
        baseline_sha256=baseline.manifest.sha256 if baseline else "",
        evaluation_sha256=data.info.calibration_sha256,
        machine=_machine(),
        plan=plan,
        version=VERSION,
    )

    def make() -> Timing:
        sessions = {"engine": _device_session(context, engine)}
        if baseline is not None:
            sessions["baseline"] = _device_session(context, baseline)
        found = measure(sessions, _latency_inputs(context, data, graph), plan)
        other = found.get("baseline")
        return Timing(
            latency=summarize(found["engine"]),
            baseline=summarize(other) if other else None,
            speedup=speedup(other, found["engine"]) if other else None,
        )

    name = f"time {engine.planned.target}"
    return context.remembered(name, "report", key, Timing, make)


def verification(
    context: Context,
    built: Built,
    accuracy: Accuracy | None,
    times: Timing | None,
    no_latency: str,
) -> Verification:
    """Return the judged verification of one engine; gates are judged anew at every call."""
    metrics = accuracy.metrics if accuracy else {}
    outputs = accuracy.outputs if accuracy else ()
    manifest = built.manifest
    evidence = Evidence(
        metric=next(iter(metrics.values()), None),
        outputs=outputs,
        speedup=times.speedup if times else None,
        no_latency=no_latency,
        precision_requested=manifest.precision_requested,
        precision_achieved=manifest.layers.precision_achieved,
    )
    return Verification(
        measured_on=measured_on(built),
        gates=judge(context.recipe.gates, evidence),
        metrics=metrics,
        outputs=outputs,
        samples=accuracy.samples if accuracy else 0,
        latency_ms=times.latency if times else None,
        no_latency=no_latency,
        baseline="the same engine in fp32" if times and times.baseline else "",
        baseline_latency_ms=times.baseline if times else None,
        speedup=times.speedup if times else None,
        twin_reason=built.planned.cannot_run,
    )


def _accuracy_key(
    source: ExportedSource, data: Data, built: Built, network: Network
) -> _AccuracyKey:
    where = measured_on(built)
    return _AccuracyKey(
        subject_sha256=built.manifest.sha256 if where == "device" else network.twin.sha256,
        measured_on=where,
        fused=network.fused,
        source_key=source.key,
        evaluation_sha256=data.info.evaluation_sha256,
        metric_sha256=data.info.code_sha256,
        judged=len(network.rows) > 1,
        runtime=f"onnxruntime {version('onnxruntime')}",
        version=VERSION,
    )


def _compared(
    context: Context,
    source: ExportedSource,
    data: Data,
    missing: dict[str, tuple[Built, Network]],
) -> dict[str, Accuracy]:
    sessions: dict[str, Session] = {}
    for name, (built, network) in missing.items():
        if measured_on(built) == "device":
            sessions[name] = _device_session(context, built)
        else:
            sessions[name] = open_graph(network.twin.path, fused=network.fused)
    context.say(f"compare {len(sessions)} engines with the framework")
    network = next(iter(missing.values()))[1]
    batches = judging(data, source.graph, network)
    metric = data.provider.metric
    result = compare(reference_session(context, source.graph), sessions, batches, metric)
    return {
        name: Accuracy(
            samples=result.samples,
            outputs=candidate.errors,
            metrics=_estimates(metric, result, candidate),
        )
        for name, candidate in result.candidates.items()
    }


def _estimates(
    metric: Metric | None, result: Comparison, candidate: Candidate
) -> dict[str, MetricEstimate]:
    if metric is None:
        return {}
    found = estimate(
        result.reference_scores, candidate.scores, higher_is_better=metric.higher_is_better
    )
    return {metric.name: found}


def _device_session(context: Context, built: Built) -> Session:
    target = built.planned.target
    return runtime(target.backend).open_session(
        context.store.read(built.manifest.sha256), target
    )


def _latency_inputs(context: Context, data: Data, graph: Graph) -> dict[str, Array]:
    """Return one batch of real inputs, of the profile's ``opt`` batch size where it has one."""
    names = [spec.name for spec in graph.inputs]
    wanted = {
        item.input: item.opt[0] for item in context.recipe.build.shape_ranges() if item.opt
    }
    fixed = [spec.shape[0] for spec in graph.inputs if spec.shape]
    size = next((n for n in (*wanted.values(), *fixed) if isinstance(n, int)), 1)
    batch = dict(next(rechunk(calibration(data, graph), names, size)))
    lengths = {array.shape[:1] for array in batch.values()}
    if len(lengths) == 1 and lengths not in ({()}, {(size,)}):
        # Fewer samples than the batch: repeat them, since time does not depend on values.
        batch = {
            name: np.resize(array, (size, *array.shape[1:])) for name, array in batch.items()
        }
    return batch


def _machine() -> str:
    """Return what distinguishes this machine for timings: processor model and count."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else ""
    models = [
        line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line
    ]
    return f"{models[0] if models else 'unknown'} x {os.cpu_count()}"
