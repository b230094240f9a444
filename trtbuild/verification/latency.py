"""Wall-clock latency of host sessions, measured so that two of them can be compared."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from trtbuild.verification.intervals import percentiles, ratio
from trtbuild.verification.results import Latency
from trtbuild.verification.turns import HostLane, take_turns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtbuild.backends import Session
    from trtbuild.batches import Array, Batch
    from trtbuild.verification.results import Speedup
    from trtbuild.verification.turns import Lane, LatencyPlan


def measure(
    sessions: Mapping[str, Session], inputs: Batch, plan: LatencyPlan
) -> dict[str, Latency]:
    """Return the latency of every session on ``inputs``, measured in turns in one run.

    Each session is fed the arrays that are its inputs; the batch size of the result is the
    first axis of its first input.

    Raises:
        ValueError: there is no session, or ``inputs`` lacks an input.
    """
    feeds = {name: _feed(name, session, inputs) for name, session in sessions.items()}
    lanes = {
        name: HostLane(session=session, inputs=feeds[name])
        for name, session in sessions.items()
    }
    return measure_lanes(lanes, {name: batch_size(feed) for name, feed in feeds.items()}, plan)


def measure_lanes(
    lanes: Mapping[str, Lane], batch_sizes: Mapping[str, int], plan: LatencyPlan
) -> dict[str, Latency]:
    """Return the latency of every lane, measured in turns in one run.

    Raises:
        ValueError: there is no lane.
    """
    if not lanes:
        message = "expected at least one session"
        raise ValueError(message)
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    turns = take_turns(lanes, plan)
    found = {}
    for name, samples in turns.samples_ms.items():
        p50, p95, p99 = percentiles(np.asarray(samples))
        found[name] = Latency(
            p50=p50,
            p95=p95,
            p99=p99,
            batch_size=batch_sizes[name],
            samples_ms=tuple(samples),
            cpu_count=_cpu_count(),
            load_average=load_average,
            warm_up=turns.warm_ups[name],
        )
    return found


def speedup(baseline: Latency, candidate: Latency) -> Speedup:
    """Return how many times faster ``candidate`` is; both come from one run.

    Raises:
        ValueError: the two were not measured side by side: their rounds differ in number.
    """
    return ratio(np.asarray(baseline.samples_ms), np.asarray(candidate.samples_ms))


def batch_size(inputs: Mapping[str, Array]) -> int:
    """Return the first axis of the first input, 1 where it has none."""
    first = next(iter(inputs.values()), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1


def _feed(name: str, session: Session, inputs: Batch) -> dict[str, Array]:
    missing = [spec.name for spec in session.inputs if spec.name not in inputs]
    if missing:
        message = f"session {name!r}: expected an array for input {missing[0]!r}"
        raise ValueError(message)
    return {spec.name: inputs[spec.name] for spec in session.inputs}


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
