"""The last stages: compare engines with the framework, time them, and judge them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trtbuild.backends import gpu_lock, runtime
from trtbuild.backends.distributions import version
from trtbuild.backends.meter import open_meter
from trtbuild.backends.ort_session import open_graph
from trtbuild.canonical import digest
from trtbuild.engine import Value
from trtbuild.pipeline.fed import one_batch
from trtbuild.pipeline.held_out import judging
from trtbuild.pipeline.precision import baseline_of
from trtbuild.pipeline.recall import machine
from trtbuild.pipeline.source import calibration, reference_session
from trtbuild.report.document import LatencyMs, Verification, summarize
from trtbuild.runtime.admission import admit_measuring
from trtbuild.runtime.made_here import made_here
from trtbuild.store.counters import Tally, count
from trtbuild.verification.accuracy import compare
from trtbuild.verification.bootstrap import estimate
from trtbuild.verification.conditions import ATTEMPTS, calm
from trtbuild.verification.gates import Evidence, judge
from trtbuild.verification.latency import measure, speedup
from trtbuild.verification.outputs import save_outputs
from trtbuild.verification.results import MetricEstimate, Speedup, TensorErrors
from trtbuild.verification.turns import LatencyPlan
from trtbuild.wording import counted

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.backends import Session
    from trtbuild.batches import Array, Metric
    from trtbuild.engine import ShapeRange
    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.engines import Built
    from trtbuild.pipeline.network import Network
    from trtbuild.pipeline.source import Data, ExportedSource
    from trtbuild.verification.accuracy import Candidate, Comparison

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
    """The keys stand beside the bytes, which may be equal for other profiles or libraries."""

    engine_key: str
    engine_sha256: str
    baseline_sha256: str
    inputs_sha256: str
    machine: str
    plan: LatencyPlan
    version: int


class Timing(Value, frozen=True, kw_only=True):
    """The latency of an engine and of its baseline, measured in turns in one run.

    ``throttled`` is why the run is invalid: the device lowered its clocks.
    """

    latency: LatencyMs
    baseline: LatencyMs | None
    speedup: Speedup | None
    throttled: str = ""


class _Invalid(Exception):  # noqa: N818  it carries what must not be stored
    """A run that does not count, and will not be remembered."""

    def __init__(self, timing: Timing) -> None:
        super().__init__(timing.throttled)
        self.timing = timing


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
            if record is not None and context.counts(record):
                known[name] = record.read(Accuracy)
    missing = {
        name: engine for name, engine in zip(names, engines, strict=True) if name not in known
    }
    _count_reports(context, hits=len(known), others=len(missing), fresh=fresh)
    if missing:
        known |= _compared(context, source, data, missing)
        for name, key in zip(names, keys, strict=True):
            if name in missing and not fresh:
                context.store.put(made_here("report", name, key, known[name]), Accuracy)
    context.log("verify", digest("reports/v1", names), started, cached=not missing)
    return [known[name] for name in names]


def _count_reports(context: Context, *, hits: int, others: int, fresh: bool) -> None:
    """Count reports that were known, and those that had, or were, to be measured anew."""
    for outcome, number in (("hit", hits), ("bypass" if fresh else "miss", others)):
        if number:
            tally = Tally(tier="local", kind="report", outcome=outcome, count=number)
            count(context.store, tally)


@dataclass(frozen=True, kw_only=True)
class Race:
    """An engine that runs here, its baseline if it has one, and what both are given.

    ``graph`` is what was built from, ``profile`` the shapes that it was built for.
    """

    engine: Built
    baseline: Built | None
    data: Data
    graph: Graph
    profile: tuple[ShapeRange, ...]


def timing(context: Context, race: Race, *, fresh: bool) -> Timing:
    """Return the latency of an engine against its baseline; ``fresh`` measures it again."""
    plan = LatencyPlan()
    engine, baseline = race.engine, race.baseline
    key = _LatencyKey(
        engine_key=engine.manifest.key,
        engine_sha256=engine.manifest.sha256,
        baseline_sha256=baseline.manifest.sha256 if baseline else "",
        inputs_sha256=race.data.info.calibration_sha256,
        machine=machine(),
        plan=plan,
        version=VERSION,
    )

    def make() -> Timing:
        sessions = {"engine": _device_session(context, engine)}
        if baseline is not None:
            sessions["baseline"] = _device_session(context, baseline)
        inputs = latency_inputs(race.data, race.graph, race.profile)
        targets = (engine.planned.target,)
        gpus = gpu_lock.measured(targets)
        with gpu_lock.all_of(gpus, context.say), open_meter(targets) as meter:
            found, conditions, _ = calm(
                lambda: measure(sessions, inputs, plan), meter, ATTEMPTS, context.say
            )
        other = found.get("baseline")
        return Timing(
            latency=summarize(found["engine"]),
            baseline=summarize(other) if other else None,
            speedup=speedup(other, found["engine"]) if other else None,
            throttled=", ".join(conditions.throttling),
        )

    def make_valid() -> Timing:
        found = make()
        if found.throttled:
            raise _Invalid(found)
        return found

    name = f"time {engine.planned.target}"
    if fresh:
        started = time.perf_counter()
        context.say(name)
        _count_reports(context, hits=0, others=1, fresh=True)
        times = make()
        context.log(name, digest("report/v1", key), started, cached=False)
        return times
    try:
        return context.measured(name, key, Timing, make_valid)
    except _Invalid as run:
        return run.timing


def verification(
    context: Context,
    built: Built,
    accuracy: Accuracy | None,
    times: Timing | None,
    no_latency: str,
) -> Verification:
    """Return the judged verification of one engine; gates are judged anew at every call."""
    metrics = accuracy.metrics if accuracy else {}
    for name, found in metrics.items():
        if found.says_nothing:
            context.find(
                "verify",
                f"{name} is {found.reference.value:g} for each of {found.units} units, with "
                f"framework and engine alike: only harder data could show a drop",
            )
    throttled = times.throttled if times else ""
    if throttled:
        no_latency = f"the device throttled ({throttled}): the run is invalid"
    valid = times if not throttled else None
    baseline = baseline_of(built.planned.target, context.recipe.quantization.precision)
    outputs = accuracy.outputs if accuracy else ()
    manifest = built.manifest
    evidence = Evidence(
        metric=next(iter(metrics.values()), None),
        outputs=outputs,
        speedup=valid.speedup if valid else None,
        throttled=throttled,
        no_latency=no_latency,
        precision_requested=manifest.precision_requested,
        precision_achieved=manifest.layers.precision_achieved,
        weights_packed=manifest.layers.weights_packed,
        unread=manifest.layers.unread,
    )
    return Verification(
        measured_on=measured_on(built),
        gates=judge(context.recipe.gates, evidence),
        metrics=metrics,
        outputs=outputs,
        samples=accuracy.samples if accuracy else 0,
        latency_ms=valid.latency if valid else None,
        no_latency=no_latency,
        baseline=f"the same engine in {baseline}" if valid and valid.baseline else "",
        baseline_latency_ms=valid.baseline if valid else None,
        speedup=valid.speedup if valid else None,
        twin_reason=built.planned.cannot_run,
    )


def write_outputs(
    context: Context,
    source: ExportedSource,
    data: Data,
    engine: tuple[Built, Network],
    path: Path,
) -> None:
    """Write what framework and engine compute of the first judging batch, for Polygraphy."""
    built, network = engine
    batch = next(judging(data, source.graph, network))
    sessions = {
        "framework": reference_session(context, source.graph),
        f"{built.planned.target} ({measured_on(built)})": _subject(context, built, network),
    }
    save_outputs(sessions, batch, path)


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
        metric_sha256=data.info.metric_sha256,
        judged=network.chosen,
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
        sessions[name] = _subject(context, built, network)
    context.say(f"compare {counted(len(sessions), 'engine')} with the framework")
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


def _subject(context: Context, built: Built, network: Network) -> Session:
    """Return the engine itself where it runs here, else its twin."""
    if measured_on(built) == "device":
        return _device_session(context, built)
    return open_graph(network.twin.path, fused=network.fused)


def _device_session(context: Context, built: Built) -> Session:
    target = built.planned.target
    found = admit_measuring(context.store, built.manifest)
    return runtime(target.backend).open_session(
        found.data,
        target,
        found.options,
        attached=found.attached,
        profiles=built.manifest.preimage.profiles,
    )


def latency_inputs(
    data: Data, graph: Graph, profile: tuple[ShapeRange, ...]
) -> dict[str, Array]:
    """Return one batch of calibration data, of ``opt`` shapes where there are such samples."""
    names = [spec.name for spec in graph.inputs]
    tuned = {item.input: item.opt for item in profile if item.opt}
    fixed = [spec.shape[0] for spec in graph.inputs if spec.shape]
    sizes = (*(shape[0] for shape in tuned.values()), *fixed)
    size = next((n for n in sizes if isinstance(n, int)), 1)
    return one_batch(calibration(data, graph), names, size, tuned)
