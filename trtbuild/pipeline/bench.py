"""Several engines of the store against each other, in one run."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from trtbuild.backends import gpu, gpu_lock, runtime
from trtbuild.backends.meter import open_meter
from trtbuild.backends.session import SessionOptions
from trtbuild.engine import Manifest, Value
from trtbuild.errors import MissingBackendError, UsageError
from trtbuild.pipeline.fed import Wish, feed
from trtbuild.pipeline.recall import machine
from trtbuild.recipe import recipe_name
from trtbuild.report.contest import BenchedEngine, BenchReport, Throughput, Timed
from trtbuild.report.document import summarize
from trtbuild.runtime.load import load
from trtbuild.store import Store, find_engine
from trtbuild.verification.contest import HOST, Contestant, ContestPlan, Way, contest
from trtbuild.verification.gates import speed_gate
from trtbuild.verification.latency import batch_size
from trtbuild.verification.results import WarmUp
from trtbuild.verification.turns import HostLane

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trtbuild.backends.session import LoadedSession
    from trtbuild.engine import Target
    from trtbuild.pipeline.fed import Fed
    from trtbuild.verification.contest import Outcome
    from trtbuild.verification.results import GateResult
    from trtbuild.verification.turns import Lane

_SHOWN_DIGITS = 12
_KNOWN_AFTER = 16
"""Calls after which a session has captured what it will."""


class BenchRequest(Value, frozen=True, kw_only=True):
    """What to measure, on which inputs, at which price per hour; ``min_speedup`` is a gate.

    The gate is on every engine against the first. ``contexts``, ``cuda_graphs`` and
    ``allow_host_code`` are how engines for GPUs are opened
    (:class:`trtbuild.backends.session.SessionOptions`).
    """

    plan: ContestPlan
    wish: Wish
    contexts: int = 0
    cuda_graphs: bool = True
    allow_host_code: bool = False
    price_per_hour: float | None = None
    min_speedup: float | None = None


def bench(
    engines: Sequence[str], store: str, request: BenchRequest, say: Callable[[str], None]
) -> BenchReport:
    """Return what one run of all ``engines``, in turns, found.

    Raises:
        UsageError: no engine, or more than one, has a name; or one is named twice.
        MissingBackendError: an engine cannot run on this machine.
        TrustError: an engine is not for the library that is installed here.
    """
    opened = Store.open_existing(store)
    manifests = _manifests(opened, engines, request)
    fed = {name: feed(manifest, request.wish) for name, manifest in manifests.items()}
    _check_gate(fed, request)
    targets = tuple(dict.fromkeys(each.preimage.target for each in manifests.values()))
    with contextlib.ExitStack() as stack:
        stack.enter_context(gpu_lock.all_of(gpu_lock.measured(targets), say))
        meter = stack.enter_context(open_meter(targets))
        contestants = []
        for name, manifest in manifests.items():
            say(f"load {name}")
            options = _options(manifest, request)
            session = stack.enter_context(load(manifest.key, store, options=options))
            lanes = _lanes(session, fed[name], manifest.preimage.target, stack)
            contestants.append(_contestant(name, session, fed[name], lanes))
        outcome = contest(contestants, request.plan, meter, say)
    return BenchReport(
        machine=machine(),
        engines=tuple(
            _benched(name, manifest, fed[name], outcome, request.price_per_hour)
            for name, manifest in manifests.items()
        ),
        comparisons=outcome.comparisons,
        conditions=outcome.conditions,
        valid=outcome.conditions.valid,
        attempts=outcome.attempts,
        price_per_hour=request.price_per_hour,
        gates=_gates(outcome, next(iter(manifests)), request.min_speedup),
    )


def _manifests(
    store: Store, engines: Sequence[str], request: BenchRequest
) -> dict[str, Manifest]:
    """Return the manifests by the names that the report uses, in the order given."""
    found: dict[str, Manifest] = {}
    for text in engines:
        manifest = find_engine(store, text).read(Manifest)
        target = manifest.preimage.target
        name = _name(text, manifest)
        if manifest.key in {each.key for each in found.values()}:
            raise UsageError(f"{text}: this engine ({name}) is named twice: name each once")
        reason = runtime(target.backend).cannot_run(target, manifest.preimage.settings)
        if reason:
            raise MissingBackendError(f"{text}: engine {name} for {target}: {reason}")
        found[name] = manifest
    if request.min_speedup is not None and len(found) == 1:
        raise UsageError(
            "--min-speedup has nothing to compare: name the baseline first, then the engine"
        )
    if not request.cuda_graphs and not any(map(_on_gpu, found.values())):
        raise UsageError("--no-cuda-graphs is for engines on a GPU, none is named: leave it")
    if request.allow_host_code and not any(map(_on_gpu, found.values())):
        raise UsageError("--allow-host-code is for engines on a GPU, none is named: leave it")
    return found


def _name(text: str, manifest: Manifest) -> str:
    """Return what the report calls an engine: model, precision, and what the user typed of it.

    Who named a file gets the start of the digest.
    """
    typed = next(
        (each for each in (manifest.sha256, manifest.key) if each.startswith(text)),
        manifest.sha256,
    )
    model = recipe_name(manifest.recipe)
    return f"{model} {manifest.precision_requested} {typed[:_SHOWN_DIGITS]}".lstrip()


def _check_gate(fed: dict[str, Fed], request: BenchRequest) -> None:
    """Refuse a gate on the speed of engines that will not do the same work."""
    (first, baseline), *others = fed.items()
    for name, each in others:
        if request.min_speedup is not None and _given(each) != _given(baseline):
            raise UsageError(
                f"--min-speedup: {name} would be given {_given(each)}, {first} "
                f"{_given(baseline)}: that is other work. Give --shape or --batch, or name it "
                f"in a run of its own"
            )


def _given(fed: Fed) -> str:
    return ", ".join(
        f"{name} {'x'.join(map(str, array.shape))}"
        for name, array in sorted(fed.arrays.items())
    )


def _on_gpu(manifest: Manifest) -> bool:
    return manifest.preimage.target.arch.startswith("sm_")


def _options(manifest: Manifest, request: BenchRequest) -> SessionOptions:
    if _on_gpu(manifest):
        return SessionOptions(
            contexts=request.contexts,
            cuda_graphs=request.cuda_graphs,
            allow_host_code=request.allow_host_code,
        )
    return SessionOptions(contexts=request.contexts)


def _contestant(
    name: str, session: LoadedSession, fed: Fed, lanes: dict[Way, Lane]
) -> Contestant:
    return Contestant(
        name=name,
        fed=_given(fed),
        batch_size=batch_size(fed.arrays),
        worker=partial(session.run, fed.arrays),
        graphs=partial(session.stats.value, "graph_launches"),
        lanes=lanes,
    )


def _lanes(
    session: LoadedSession, fed: Fed, target: Target, stack: contextlib.ExitStack
) -> dict[Way, Lane]:
    """Return the ways to time an engine: CUDA events too where it runs on a GPU."""
    lane = HostLane(session=session, inputs=fed.arrays)
    if not target.arch.startswith("sm_"):
        return {HOST: lane}
    from trtbuild.backends import cuda_lanes  # noqa: PLC0415  its imports need a driver

    device = gpu.index_for(target)
    found = stack.enter_context(cuda_lanes.open_lanes(session, fed.arrays, device))
    lanes: dict[Way, Lane] = {
        Way(cuda_graph=_replays(session, lane)): lane,
        Way(transfers=False, cuda_graph=_replays(session, found.host)): found.host,
    }
    for copies, events in found.events.items():
        graph = _replays(session, events)
        way = Way(
            clock="cuda events",
            transfers=copies,
            cuda_graph=graph,
            host_bound=events.host_bound,
        )
        lanes[way] = events
    return lanes


def _replays(session: LoadedSession, lane: Lane) -> bool:
    """Return whether calls of ``lane`` really are CUDA graphs, once they are known."""
    for _ in range(_KNOWN_AFTER):
        lane.call()
    before = session.stats.value("graph_launches")
    lane.call()
    return session.stats.value("graph_launches") > before


def _benched(
    name: str, manifest: Manifest, fed: Fed, outcome: Outcome, price_per_hour: float | None
) -> BenchedEngine:
    target = manifest.preimage.target
    return BenchedEngine(
        name=name,
        key=manifest.key,
        sha256=manifest.sha256,
        bytes=manifest.bytes,
        backend=target.backend,
        backend_version=manifest.preimage.fingerprint.version,
        arch=target.arch,
        precision_requested=manifest.precision_requested,
        inputs={key: array.shape for key, array in fed.arrays.items()},
        batch_size=batch_size(fed.arrays),
        data=fed.origin,
        no_cuda_events=""
        if any(owner == name and way.clock != "host" for owner, way, _ in outcome.latencies)
        else "the engine runs on the processor: no CUDA events",
        latency=tuple(
            Timed(
                way=way,
                latency_ms=summarize(latency),
                warm_up=latency.warm_up or WarmUp(seconds=0, calls=0, settled=False),
            )
            for owner, way, latency in outcome.latencies
            if owner == name
        ),
        throughput=tuple(
            Throughput(
                rate=rate,
                cost_per_million=None
                if price_per_hour is None
                else rate.cost_per_million(price_per_hour),
            )
            for rate in outcome.rates[name]
        ),
    )


def _gates(outcome: Outcome, first: str, min_speedup: float | None) -> tuple[GateResult, ...]:
    """Judge every engine that was compared with the first; an invalid run fails."""
    if min_speedup is None:
        return ()
    invalid = ", ".join(outcome.conditions.throttling)
    rivals = [
        each
        for each in outcome.comparisons
        if each.way.by == HOST.by and each.baseline == first
    ]
    return tuple(
        speed_gate(min_speedup, each.speedup, each.engine, invalid=invalid) for each in rivals
    )
