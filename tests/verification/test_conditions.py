from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.verification.meters import ScriptedMeter, reading
from trtbuild.backends.meter import FIGURES, NoMeter, Reading
from trtbuild.verification.conditions import Watch

if TYPE_CHECKING:
    from trtbuild.backends.meter import Meter

SILENT = Reading(sm_mhz=None, memory_mhz=None, temperature_c=None, power_mw=None, reasons=None)


def test_one_reading_of_a_lowered_clock_makes_the_run_invalid() -> None:
    calm, hot = reading(), reading("thermal slowdown", sm_mhz=900)
    with Watch(ScriptedMeter([calm, calm, hot, calm]), period_s=0.001) as watch:
        time.sleep(0.05)
    found = watch.conditions()
    assert found.readings >= 4
    assert found.valid is False
    assert found.throttling == ("thermal slowdown",)
    assert found.reasons == {"thermal slowdown": 1}
    assert found.sm_mhz is not None
    assert (found.sm_mhz.low, found.sm_mhz.median, found.sm_mhz.high) == (900, 1500, 1500)


def test_clocks_that_somebody_locked_and_an_idle_moment_are_no_throttling() -> None:
    with Watch(ScriptedMeter([reading("idle"), reading("locked clocks")])) as watch:
        pass
    assert watch.conditions().valid is True


def test_a_reason_that_no_driver_gives_yet_is_throttling() -> None:
    with Watch(ScriptedMeter([reading("reason 0x800")])) as watch:
        pass
    assert watch.conditions().valid is False


@pytest.mark.parametrize(
    ("meter", "readings"),
    [
        (ScriptedMeter([SILENT], absent={"reasons": "not supported"}), 2),
        (NoMeter("no driver"), 0),
    ],
)
def test_a_device_that_does_not_tell_is_not_called_valid(meter: Meter, readings: int) -> None:
    with Watch(meter) as watch:
        pass
    found = watch.conditions()
    assert found.valid is None
    assert found.throttling == ()
    assert found.sm_mhz is None
    assert found.reasons is None
    assert "reasons" in found.absent
    assert found.readings == readings


def test_a_machine_without_instruments_says_why_of_every_figure() -> None:
    assert set(NoMeter("no driver").absent) == set(FIGURES)
