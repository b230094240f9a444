from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.verification.meters import ScriptedMeter, reading
from tests.verification.sessions import linear
from trtbuild.backends.meter import NoMeter
from trtbuild.verification import conditions
from trtbuild.verification.contest import HOST, Contestant, ContestPlan, Way, contest
from trtbuild.verification.rates import RatePlan
from trtbuild.verification.turns import HostLane, LatencyPlan

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.backends.meter import Meter
    from trtbuild.verification.contest import Outcome

PLAN = ContestPlan(
    latency=LatencyPlan(warmup_seconds=0, seconds=0.05, min_rounds=40, calls_per_turn=2),
    rate=RatePlan(seconds=0.03, windows=3),
)
EVENTS = Way(clock="cuda events", transfers=False, cuda_graph=True)


class Sleeping:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def call(self) -> float:
        start = time.perf_counter()
        time.sleep(self._seconds)
        return 1000 * (time.perf_counter() - start)


def sleeper(name: str, seconds: float, fed: str = "x") -> Contestant:
    lane = Sleeping(seconds)
    return Contestant(
        name=name, fed=fed, batch_size=1, worker=lane.call, lanes={HOST: lane, EVENTS: lane}
    )


def run(*contestants: Contestant, meter: Meter | None = None) -> tuple[Outcome, list[str]]:
    said: list[str] = []
    found = contest(contestants, PLAN, meter or NoMeter("no GPU"), said.append)
    return found, said


def test_real_sessions_that_are_the_same_cannot_be_told_apart(tmp_path: Path) -> None:
    session = linear(tmp_path / "m.onnx")
    x = np.ones((4, 4), np.float32)
    pair = [
        Contestant(name=name, fed="x", batch_size=4, worker=lane.call, lanes={HOST: lane})
        for name in "ab"
        for lane in [HostLane(session=session, inputs={"x": x})]
    ]
    found, _ = run(*pair)
    (comparison,) = found.comparisons
    assert comparison.speedup.low <= comparison.speedup.value <= comparison.speedup.high
    assert comparison.distinct == (not comparison.speedup.low <= 1 <= comparison.speedup.high)
    assert found.rates["a"][0].inferences_per_s.value > 0


def test_every_pair_is_compared_in_every_way_the_slower_one_told_apart() -> None:
    found, _ = run(sleeper("slow", 0.004), sleeper("fast", 0.001), sleeper("other", 0.001, "y"))
    assert [(each.baseline, each.engine, each.way) for each in found.comparisons] == [
        ("slow", "fast", HOST),
        ("slow", "fast", EVENTS),
    ]
    for each in found.comparisons:
        assert each.distinct
        assert each.speedup.low > 1
    assert [(name, way) for name, way, _ in found.latencies] == [
        (name, way) for name in ("slow", "fast", "other") for way in (HOST, EVENTS)
    ]


def test_a_throttled_run_is_measured_again_and_counts_when_it_is_calm() -> None:
    meter = ScriptedMeter([reading("power cap"), reading()])
    found, said = run(sleeper("a", 0.001), meter=meter)
    assert (found.attempts, found.conditions.valid) == (2, True)
    assert any("throttled (power cap)" in text for text in said)


def test_a_device_that_always_throttles_is_given_up_as_invalid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conditions, "_COOLING_S", 0.0)
    found, _ = run(sleeper("a", 0.001), meter=ScriptedMeter([reading("power brake")]))
    assert (found.attempts, found.conditions.valid) == (PLAN.attempts, False)
    assert found.conditions.throttling == ("power brake",)


def test_names_must_differ() -> None:
    with pytest.raises(ValueError, match="names of their own"):
        run(sleeper("a", 0.001), sleeper("a", 0.001))
    with pytest.raises(ValueError, match="names of their own"):
        run()
