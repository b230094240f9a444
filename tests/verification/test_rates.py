from __future__ import annotations

import threading
import time
from typing import NoReturn

import pytest

from tests.verification.meters import ScriptedMeter, reading
from trtbuild.backends.meter import NoMeter
from trtbuild.errors import DataError
from trtbuild.verification import rates as module
from trtbuild.verification.rates import RatePlan, Worker, rates

PLAN = RatePlan(threads=(1, 4), seconds=0.3, windows=3)


def sleeping() -> None:
    time.sleep(0.005)


@pytest.fixture(autouse=True)
def _short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ENERGY_WINDOW_S", 0.2)


def test_as_many_calls_run_at_once_as_there_are_threads() -> None:
    lock = threading.Lock()
    inside, peaks = 0, []

    def call() -> None:
        nonlocal inside
        with lock:
            inside += 1
            peaks.append(inside)
        sleeping()
        with lock:
            inside -= 1

    found = rates({"one": Worker(call=call, batch_size=8)}, PLAN, NoMeter("none"))
    alone, together = found["one"]
    assert (alone.threads, together.threads) == (1, 4)
    assert max(peaks) == 4
    assert alone.inferences_per_s.value <= 8 / 0.005
    assert together.p99_ms >= together.p50_ms >= 5
    assert together.calls >= 3 * 4


def test_percentiles_under_load_have_intervals_by_how_windows_differ() -> None:
    waits = iter([0.001] * 3 + [0.004] * 10_000)  # the first calls are faster

    def uneven() -> None:
        time.sleep(next(waits))

    plan = RatePlan(seconds=0.3, windows=3)
    (rate,) = rates({"x": Worker(call=uneven, batch_size=1)}, plan, NoMeter(""))["x"]
    assert set(rate.intervals) == {"p50", "p99"}
    for name, value in (("p50", rate.p50_ms), ("p99", rate.p99_ms)):
        low, high = rate.intervals[name]
        assert 0 <= low <= value <= high
        assert low < high


def test_a_rate_says_how_many_calls_were_graphs() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        sleeping()

    plan = RatePlan(seconds=0.3, windows=3)
    half = Worker(call=call, batch_size=1, graphs=lambda: calls / 2)
    found = rates(
        {"half": half, "none": Worker(call=sleeping, batch_size=1)}, plan, NoMeter("")
    )
    assert found["half"][0].graph_share == pytest.approx(0.5, abs=0.1)
    assert found["none"][0].graph_share == 0


def test_a_failing_call_ends_the_run_with_its_own_error() -> None:
    def fail() -> NoReturn:
        raise DataError("an index beyond the table")

    with pytest.raises(DataError, match="beyond the table"):
        rates({"x": Worker(call=fail, batch_size=1)}, PLAN, NoMeter(""))


def test_energy_is_that_of_the_window_and_idle_power_is_a_share_of_it() -> None:
    plan = RatePlan(seconds=0.1, windows=3)
    meter = ScriptedMeter([reading()], watts=50)
    (rate,) = rates({"x": Worker(call=sleeping, batch_size=2)}, plan, meter)["x"]
    assert rate.energy is not None
    expected = 50_000 / rate.inferences_per_s.value
    assert rate.energy.mj_per_inference.value == pytest.approx(expected, rel=0.2)
    assert rate.energy.watts == pytest.approx(50, rel=0.2)
    assert rate.energy.idle_share == pytest.approx(1, abs=0.2)
    assert rate.no_energy == ""


def test_a_counter_that_stands_still_is_no_energy_of_0() -> None:
    plan = RatePlan(seconds=0.1, windows=3)
    meter = ScriptedMeter([reading()], watts=0)
    (rate,) = rates({"x": Worker(call=sleeping, batch_size=1)}, plan, meter)["x"]
    assert rate.energy is None
    assert "stood still" in rate.no_energy
    (rate,) = rates({"x": Worker(call=sleeping, batch_size=1)}, plan, NoMeter("no GPU"))["x"]
    assert (rate.energy, rate.no_energy) == (None, "no GPU")


def test_a_price_per_hour_is_one_per_inference() -> None:
    plan = RatePlan(seconds=0.1, windows=3)
    (rate,) = rates({"x": Worker(call=sleeping, batch_size=1)}, plan, NoMeter(""))["x"]
    per_hour = 3600 * rate.inferences_per_s.value
    assert rate.cost_per_million(1.5) == pytest.approx(1.5e6 / per_hour)
