"""Calls of several engines, timed in turns so that they can be compared.

Two numbers of two runs on a shared machine compare the machine's moods. Here all lanes take
turns within one run: what disturbs a round disturbs all of its turns. The first call of a turn
is not timed: it brings weights back into the caches and lets the threads of the lane before it
stop spinning.
"""

from __future__ import annotations

import contextlib
import gc
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Protocol

import msgspec
import numpy as np

from trtbuild.engine import Value
from trtbuild.verification.results import WarmUp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from trtbuild.backends import Session
    from trtbuild.batches import Array

_SEED = 20_250_102
_NS_PER_MS = 1e6
_NS_PER_S = 1e9
_LEAST_ROUNDS = 3
_SETTLED_CALLS = 3


class LatencyPlan(Value, frozen=True, kw_only=True):
    """How long to measure.

    A round gives every lane one turn of ``calls_per_turn`` timed calls. Rounds end when turns
    took ``seconds`` per lane and there are ``min_rounds``, or when ``max_rounds`` or
    ``max_seconds`` (for slow models, but at least 3 rounds) are reached.

    Warm-up comes before and lasts ``warmup_seconds`` per lane, at least one call; then it goes
    on, up to ``max_warmup_seconds``, until the medians of its last two quarters of a period
    differ by no more than ``settled_within``. With 0 seconds it is that one call.
    """

    warmup_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.2
    max_warmup_seconds: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    settled_within: Annotated[float, msgspec.Meta(gt=0)] = 0.1
    seconds: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    max_seconds: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    calls_per_turn: Annotated[int, msgspec.Meta(ge=1)] = 5
    min_rounds: Annotated[int, msgspec.Meta(ge=3)] = 10
    max_rounds: Annotated[int, msgspec.Meta(ge=3)] = 400


class Lane(Protocol):
    """One way to call one engine, always on the same inputs."""

    def call(self) -> float:
        """Call it once, wait for its end, and return how many milliseconds it took."""


@dataclass(frozen=True, kw_only=True)
class HostLane:
    """Calls of a session as its user sees them: host arrays in and out, by a host clock."""

    session: Session
    inputs: Mapping[str, Array]
    clock: Callable[[], int] = time.perf_counter_ns

    def call(self) -> float:
        """Return the milliseconds of one call, copies included."""
        start = self.clock()
        self.session.run(self.inputs)
        return (self.clock() - start) / _NS_PER_MS


@dataclass(frozen=True, kw_only=True)
class Turns:
    """What was timed: milliseconds [rounds][calls] and the warm-up, by lane."""

    samples_ms: dict[str, list[tuple[float, ...]]]
    warm_ups: dict[str, WarmUp]


def take_turns(
    lanes: Mapping[str, Lane],
    plan: LatencyPlan,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Turns:
    """Warm up and time ``lanes``; round ``i`` of all lanes was measured side by side.

    The order of turns changes from round to round. Garbage collection is off while calls are
    timed.
    """
    warm_ups = {name: warm_up(lane, plan, clock) for name, lane in lanes.items()}
    names = tuple(lanes)
    order = np.random.default_rng(_SEED)
    samples: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    spent_s = 0.0
    with no_collection():
        for done in range(plan.max_rounds):
            per_lane_s = spent_s / len(names)
            enough = done >= plan.min_rounds and per_lane_s >= plan.seconds
            if enough or (done >= _LEAST_ROUNDS and per_lane_s >= plan.max_seconds):
                break
            start = clock()
            for index in order.permutation(len(names)):
                lane = lanes[names[index]]
                lane.call()
                samples[names[index]].append(
                    tuple(lane.call() for _ in range(plan.calls_per_turn))
                )
            spent_s += (clock() - start) / _NS_PER_S
    return Turns(samples_ms=samples, warm_ups=warm_ups)


def warm_up(lane: Lane, plan: LatencyPlan, clock: Callable[[], int]) -> WarmUp:
    """Call ``lane`` until its times have settled, as ``plan`` says."""
    start = clock()
    lane.call()
    calls: list[tuple[float, float]] = []  # the moment of its end in seconds, and milliseconds
    while True:
        now = (clock() - start) / _NS_PER_S
        settled = _settled(calls, now, plan)
        if now >= plan.warmup_seconds and (settled or now >= plan.max_warmup_seconds):
            return WarmUp(seconds=now, calls=len(calls) + 1, settled=settled)
        took_ms = lane.call()
        calls.append(((clock() - start) / _NS_PER_S, took_ms))


def _settled(calls: list[tuple[float, float]], now: float, plan: LatencyPlan) -> bool:
    """Return whether the last quarter of a warm-up period is as fast as the one before it."""
    if plan.warmup_seconds == 0:
        return True
    quarter = plan.warmup_seconds / 4
    recent = max(_SETTLED_CALLS, sum(moment > now - quarter for moment, _ in calls[-1000:]))
    if len(calls) < 2 * recent:
        return False
    last = float(np.median([ms for _, ms in calls[-recent:]]))
    before = float(np.median([ms for _, ms in calls[-2 * recent : -recent]]))
    return abs(last - before) <= plan.settled_within * before


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Collect garbage now, and not within the body."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
