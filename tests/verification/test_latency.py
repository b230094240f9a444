from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.verification.sessions import elementwise, identity
from trtbuild.verification.latency import measure, speedup
from trtbuild.verification.turns import LatencyPlan, warm_up

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from tests.verification.sessions import FunctionSession

X = np.zeros((5, 4), np.float32)
SHORT = LatencyPlan(warmup_seconds=0, seconds=0.001, calls_per_turn=2, min_rounds=12)


def sleeping(seconds: float, calls: list[float] | None = None) -> FunctionSession:
    def sleep(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        time.sleep(seconds)
        if calls is not None:
            calls.append(seconds)
        return x

    return elementwise(sleep)


def test_a_session_that_takes_longer_is_slower() -> None:
    found = measure(
        {"slow": sleeping(0.02), "fast": sleeping(0.001)}, {"x": X, "labels": X}, SHORT
    )
    ratio = speedup(found["slow"], found["fast"])
    assert ratio.value > 1
    assert ratio.low <= ratio.value <= ratio.high
    assert ratio.pair_p10 <= ratio.pair_p90
    assert speedup(found["slow"], found["slow"]).value == 1


def test_percentiles_are_ordered_and_inside_the_samples() -> None:
    (latency,) = measure({"one": sleeping(0.001)}, {"x": X}, SHORT).values()
    times = np.asarray(latency.samples_ms)
    assert times.shape == (12, 2)
    assert latency.samples == 24
    assert latency.p50.value == np.median(times)
    assert times.min() <= latency.p50.value <= latency.p95.value <= latency.p99.value
    assert latency.p99.value <= times.max()
    for interval in (latency.p50, latency.p95, latency.p99):
        assert interval.low <= interval.value <= interval.high
    assert latency.batch_size == 5
    assert latency.cpu_count >= 1


def test_sessions_take_turns_in_changing_order() -> None:
    calls: list[float] = []
    sessions = {"a": sleeping(0.0001, calls), "b": sleeping(0.0002, calls)}
    measure(sessions, {"x": X}, SHORT)
    turns = np.asarray(calls[2:]).reshape(12, 2, 3)  # round, turn, one untimed call and two
    assert (turns == turns[:, :, :1]).all()
    assert {tuple(sorted(row)) for row in turns[:, :, 0].tolist()} == {(0.0001, 0.0002)}
    assert len({tuple(row) for row in turns[:, :, 0].tolist()}) == 2


def test_rounds_end_by_time_or_by_number() -> None:
    slow = LatencyPlan(
        warmup_seconds=0, seconds=9, max_seconds=0.01, calls_per_turn=1, min_rounds=50
    )
    (latency,) = measure({"slow": sleeping(0.01)}, {"x": X}, slow).values()
    assert latency.samples == 3
    many = LatencyPlan(warmup_seconds=0, seconds=9, calls_per_turn=1, max_rounds=7)
    (latency,) = measure({"fast": identity()}, {"x": X}, many).values()
    assert latency.samples == 7


def test_garbage_collection_is_off_only_while_calls_are_timed() -> None:
    states: list[bool] = []

    def look(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        states.append(gc.isenabled())
        return x

    measure({"one": elementwise(look)}, {"x": X}, SHORT)
    assert states[0]
    assert not any(states[1:])
    assert gc.isenabled()


def test_what_was_not_measured_together_is_not_compared() -> None:
    one = measure({"a": identity()}, {"x": X}, SHORT)["a"]
    other = measure({"a": identity()}, {"x": X}, LatencyPlan(seconds=0.001, max_rounds=3))["a"]
    with pytest.raises(ValueError, match="latencies of one run"):
        speedup(one, other)
    with pytest.raises(ValueError, match="at least one session"):
        measure({}, {"x": X}, SHORT)
    with pytest.raises(ValueError, match="session 'a': expected an array for input 'x'"):
        measure({"a": identity()}, {"y": X}, SHORT)


class Clocked:
    """A lane whose calls take what ``times_ms`` says, on a clock of its own."""

    def __init__(self, times_ms: Iterable[float]) -> None:
        self._times_ms = iter(times_ms)
        self._now_ns = 0

    def call(self) -> float:
        took = next(self._times_ms)
        self._now_ns += int(took * 1e6)
        return took

    def clock(self) -> int:
        return self._now_ns


def test_warm_up_lasts_until_times_have_settled() -> None:
    falling = [100 * 0.95**n for n in range(60)]
    lane = Clocked([*falling, *[1.0] * 2000])
    found = warm_up(lane, LatencyPlan(warmup_seconds=0.02, max_warmup_seconds=9), lane.clock)
    assert found.settled
    assert found.seconds >= sum(falling[:45]) / 1000
    assert found.calls > 50


def test_times_that_never_settle_end_the_warm_up_and_are_told() -> None:
    lane = Clocked(1.2**n for n in range(100))
    found = warm_up(lane, LatencyPlan(warmup_seconds=0.1, max_warmup_seconds=2), lane.clock)
    assert not found.settled
    assert found.seconds >= 2
