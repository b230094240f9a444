"""Wall-clock latency of host sessions, measured so that two of them can be compared.

Two numbers of two runs on a shared machine compare the machine's moods. Here all sessions
take turns on the same inputs within one run: what disturbs a round disturbs all of its turns,
and the ratio of two sessions is taken from rounds, not from runs. The first call of a turn is
not timed: it brings weights back into the caches and lets the threads of the session before it
stop spinning.
"""

from __future__ import annotations

import gc
import os
import time
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

from trtbuild.engine import Value
from trtbuild.verification.results import Interval, Latency, Speedup

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from trtbuild.backends import Session
    from trtbuild.batches import Array, Batch

_RESAMPLES = 1000
_SEED = 20_250_102
_CHUNK_ELEMENTS = 1 << 21
_QUANTILES = (50, 95, 99)
_NS_PER_MS = 1e6


class LatencyPlan(Value, frozen=True, kw_only=True):
    """How long to measure.

    A round gives every session one turn of ``calls_per_turn`` timed calls. Rounds end when each
    session has been timed for ``seconds`` and has ``min_rounds``, or when ``max_rounds`` or
    ``max_seconds`` (for slow models, but at least 3 rounds) are reached. Warm-up comes before
    and lasts ``warmup_seconds`` per session, at least one call.
    """

    warmup_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.2
    seconds: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    max_seconds: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    calls_per_turn: Annotated[int, msgspec.Meta(ge=1)] = 5
    min_rounds: Annotated[int, msgspec.Meta(ge=3)] = 10
    max_rounds: Annotated[int, msgspec.Meta(ge=3)] = 400


_LEAST_ROUNDS = 3


def measure(
    sessions: Mapping[str, Session], inputs: Batch, plan: LatencyPlan
) -> dict[str, Latency]:
    """Return the latency of every session on ``inputs``, measured in turns in one run.

    Each session is fed the arrays that are its inputs; the batch size of the result is the
    first axis of its first input. The order of turns changes from round to round. Garbage
    collection is off while calls are timed.

    Raises:
        ValueError: there is no session, or ``inputs`` lacks an input.
    """
    if not sessions:
        message = "expected at least one session"
        raise ValueError(message)
    feeds = {name: _feed(name, session, inputs) for name, session in sessions.items()}
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    for name, session in sessions.items():
        _warm_up(session, feeds[name], plan.warmup_seconds)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        samples = _rounds(sessions, feeds, plan)
    finally:
        if collecting:
            gc.enable()
    return {
        name: _latency(rows, _batch_size(feeds[name]), load_average)
        for name, rows in samples.items()
    }


def speedup(baseline: Latency, candidate: Latency) -> Speedup:
    """Return how many times faster ``candidate`` is; both come from one :func:`measure`.

    Raises:
        ValueError: the two were not measured side by side: their rounds differ in number.
    """
    slow, fast = np.asarray(baseline.samples_ms), np.asarray(candidate.samples_ms)
    if slow.shape != fast.shape:
        message = f"expected latencies of one run, got rounds {slow.shape} and {fast.shape}"
        raise ValueError(message)
    pairs = np.median(slow, axis=1) / np.median(fast, axis=1)
    resampled = np.concatenate(
        [
            np.median(slow[rounds].reshape(len(rounds), -1), axis=1)
            / np.median(fast[rounds].reshape(len(rounds), -1), axis=1)
            for rounds in _resampled_rounds(slow.shape)
        ]
    )
    low, high = np.percentile(resampled, (2.5, 97.5))
    p10, p90 = np.percentile(pairs, (10, 90))
    return Speedup(
        value=float(np.median(slow) / np.median(fast)),
        low=float(low),
        high=float(high),
        pair_p10=float(p10),
        pair_p90=float(p90),
    )


def _feed(name: str, session: Session, inputs: Batch) -> dict[str, Array]:
    missing = [spec.name for spec in session.inputs if spec.name not in inputs]
    if missing:
        message = f"session {name!r}: expected an array for input {missing[0]!r}"
        raise ValueError(message)
    return {spec.name: inputs[spec.name] for spec in session.inputs}


def _batch_size(inputs: Mapping[str, Array]) -> int:
    first = next(iter(inputs.values()), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1


def _warm_up(session: Session, inputs: Mapping[str, Array], seconds: float) -> None:
    end = time.perf_counter() + seconds
    session.run(inputs)
    while time.perf_counter() < end:
        session.run(inputs)


def _rounds(
    sessions: Mapping[str, Session], feeds: Mapping[str, Mapping[str, Array]], plan: LatencyPlan
) -> dict[str, list[tuple[float, ...]]]:
    """Return milliseconds per session, round and call."""
    names = tuple(sessions)
    order = np.random.default_rng(_SEED)
    samples: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    spent_s = 0.0
    for done in range(plan.max_rounds):
        per_session_s = spent_s / len(names)
        enough = done >= plan.min_rounds and per_session_s >= plan.seconds
        if enough or (done >= _LEAST_ROUNDS and per_session_s >= plan.max_seconds):
            break
        for index in order.permutation(len(names)):
            name = names[index]
            calls = _turn(sessions[name], feeds[name], plan.calls_per_turn)
            samples[name].append(calls)
            spent_s += sum(calls) / 1000
    return samples


def _turn(session: Session, inputs: Mapping[str, Array], calls: int) -> tuple[float, ...]:
    session.run(inputs)
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        session.run(inputs)
        times.append((time.perf_counter_ns() - start) / _NS_PER_MS)
    return tuple(times)


def _latency(
    samples: list[tuple[float, ...]], batch_size: int, load_average: float | None
) -> Latency:
    array = np.asarray(samples)
    resampled = np.concatenate(
        [
            np.percentile(array[rounds].reshape(len(rounds), -1), _QUANTILES, axis=1).T
            for rounds in _resampled_rounds(array.shape)
        ]
    )
    low, high = np.percentile(resampled, (2.5, 97.5), axis=0)
    p50, p95, p99 = (
        Interval(value=float(value), low=float(lo), high=float(hi))
        for value, lo, hi in zip(np.percentile(array, _QUANTILES), low, high, strict=True)
    )
    return Latency(
        p50=p50,
        p95=p95,
        p99=p99,
        batch_size=batch_size,
        samples_ms=tuple(samples),
        cpu_count=_cpu_count(),
        load_average=load_average,
    )


def _resampled_rounds(shape: tuple[int, ...]) -> list[npt.NDArray[np.int64]]:
    """Return chunks [resamples, rounds] of round indices, the same at every call.

    Whole rounds are drawn, since the calls of one turn share what disturbed it.
    """
    rounds, calls = shape
    generator = np.random.default_rng(_SEED)
    step = max(1, _CHUNK_ELEMENTS // (rounds * calls))
    return [
        generator.integers(0, rounds, size=(min(step, _RESAMPLES - start), rounds))
        for start in range(0, _RESAMPLES, step)
    ]


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
