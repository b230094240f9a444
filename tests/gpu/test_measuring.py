"""Measured on a GPU: lanes, clocks, energy, what a session costs over a bare loop."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import pytest

from tests.backends import graphs
from trtbuild.backends import gpu, trt_session
from trtbuild.backends.meter import FIGURES, open_meter
from trtbuild.backends.session import SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.gpu.conftest import Builds
    from trtbuild.verification.turns import Lane

pytestmark = pytest.mark.gpu


def test_lanes_time_the_gpu_which_is_held_while_calls_are_enqueued(builds: Builds) -> None:
    from trtbuild.backends import cuda_lanes  # noqa: PLC0415  its imports need a driver

    built = builds.residual()
    index = gpu.index_for(built.target)
    with trt_session.open_session(built.plan, built.target) as session:
        arrays = {"x": graphs.images(1)}
        with cuda_lanes.open_lanes(session, arrays, index) as lanes:
            every: list[Lane] = [*lanes.events.values(), lanes.host]
            for lane in every:
                assert all(lane.call() > 0 for _ in range(200))
            assert not any(each.host_bound for each in lanes.events.values())
            by_gpu = statistics.median(lanes.events[False].call() for _ in range(200))
            by_host = statistics.median(lanes.host.call() for _ in range(200))
        assert by_gpu <= by_host


def test_the_meter_of_the_gpu_has_figures_or_reasons(builds: Builds) -> None:
    built = builds.residual()
    with (
        open_meter((built.target,)) as meter,
        trt_session.open_session(built.plan, built.target) as session,
    ):
        assert meter.device
        before, end = meter.energy_mj(), time.monotonic() + 1.5
        while time.monotonic() < end:
            session.run({"x": graphs.images(8)})
        reading, after = meter.read(), meter.energy_mj()
    figures = {
        "sm_mhz": reading.sm_mhz,
        "memory_mhz": reading.memory_mhz,
        "temperature_c": reading.temperature_c,
        "power_mw": reading.power_mw,
        "reasons": reading.reasons,
        "energy_mj": after,
    }
    assert set(figures) == set(FIGURES)
    for name, figure in figures.items():
        assert (figure is None) == (name in meter.absent)
    if before is not None and after is not None:
        assert after > before


def test_the_cost_of_a_session_over_a_bare_loop_is_reported(
    builds: Builds, record_property: Callable[[str, object], None]
) -> None:
    """Not judged: it is for whoever reads the JUnit file of the night."""
    from tests.benchmarks import runtime_overhead  # noqa: PLC0415  its imports need a driver
    from trtbuild.backends import cuda_device  # noqa: PLC0415  as above

    built = builds.residual()
    feeds = {"x": graphs.images(1)}
    device = cuda_device.device(gpu.index_for(built.target))
    options = SessionOptions(contexts=1)
    with (
        trt_session.open_session(built.plan, built.target, options) as session,
        device.active(),
    ):
        library = runtime_overhead.opened_api(built.target)
        bare = runtime_overhead.BareLoop(built.plan, library, device, feeds)
        given, outputs = runtime_overhead.on_gpu(bare, session)
        loops: dict[str, Callable[[], object]] = {
            "bare": bare,
            "run": lambda: session.run(feeds),
            "bare_device": bare.on_device,
            "run_device": lambda: session.run_device(given, outputs),
        }
        for name, times in runtime_overhead.in_turns(loops, 100).items():
            record_property(f"{builds.target.backend}_{name}_us", statistics.median(times))
        bare.close()
