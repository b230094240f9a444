"""Lanes of a simulated device: what is enqueued between the events, and when it may begin."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.runtime import simulated
from tests.runtime.test_gpu_session import rows, session
from trtbuild.backends.session import SessionOptions
from trtbuild.engine import Target
from trtbuild.pipeline import bench
from trtbuild.pipeline.fed import Fed
from trtbuild.verification.contest import Way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trtbuild.backends.session import LoadedSession

WARM = 10


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> simulated.Device:
    return simulated.install(monkeypatch)


def opened(one: LoadedSession, count: int = 3) -> Any:  # noqa: ANN401  a module made anew
    module = importlib.import_module("trtbuild.backends.cuda_lanes")
    return module.open_lanes(one, {"x": rows(count)}, 0)


@pytest.fixture
def one(device: simulated.Device) -> Iterator[LoadedSession]:
    with session(device, SessionOptions(contexts=1)) as found:
        yield found


@pytest.mark.parametrize("copies", [False, True])
def test_the_device_waits_until_a_whole_call_is_enqueued(
    copies: bool,  # noqa: FBT001  a parameter of the test
    one: LoadedSession,
    device: simulated.Device,
) -> None:
    with opened(one) as lanes:
        lane = lanes.events[copies]
        for _ in range(WARM):
            assert lane.call() == 1
        device.log.clear()
        before = device.copies
        assert lane.call() == 1
        assert device.log == ["hold", "run", "event", "run", "event"]
        assert device.held[0] == 1
        assert device.copies - before == 2 * copies
        assert not lane.host_bound
        assert one.stats.value("graph_launches") > 0
    assert device.depth == 0


def test_what_comes_first_is_not_held_since_it_may_wait_for_the_device(
    one: LoadedSession, device: simulated.Device
) -> None:
    with opened(one) as lanes:
        for _ in range(3):
            lanes.events[False].call()
    assert "hold" not in device.log


def test_arrays_without_elements_are_timed_too(device: simulated.Device) -> None:
    with session(device) as found, opened(found, 0) as lanes:
        for lane in (*lanes.events.values(), lanes.host):
            for _ in range(WARM):
                lane.call()


def test_outputs_whose_shape_depends_on_values_have_no_copies_and_hold_nothing(
    device: simulated.Device,
) -> None:
    with session(device, late=True) as found, opened(found) as lanes:
        assert list(lanes.events) == [False]
        for _ in range(WARM):
            lanes.events[False].call()
            lanes.host.call()
        assert lanes.events[False].host_bound
        assert "hold" not in device.log


def test_a_call_that_waits_for_the_device_while_it_is_held_lets_it_go(
    one: LoadedSession, device: simulated.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("trtbuild.backends.cuda_lanes")
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    with opened(one) as lanes:
        lane = lanes.events[False]
        for _ in range(WARM):
            lane.call()
        flag = device.held
        ended = threading.Event()

        def blocked(_stream: object) -> None:
            while flag[0] != 1:
                time.sleep(0.001)
            ended.set()

        monkeypatch.setattr(module._Call, "enqueue", blocked)  # noqa: SLF001  what it enqueues
        lane.call()
        assert ended.is_set()
        assert lane.host_bound


def test_everything_is_freed(one: LoadedSession, device: simulated.Device) -> None:
    one.run({"x": rows(3)})
    with opened(one) as lanes:
        for lane in (*lanes.events.values(), lanes.host):
            lane.call()
    del lanes, lane
    held = len(device.live)
    one.close()
    assert held > 0
    assert device.live == {}


def test_a_bench_times_an_engine_in_four_ways(
    one: LoadedSession, device: simulated.Device
) -> None:
    del device
    target = Target(backend="tensorrt", arch="sm_90", os="linux-x86_64")
    fed = Fed(arrays={"x": rows(3)}, origin="drawn")
    with contextlib.ExitStack() as stack:
        lanes = bench._lanes(one, fed, target, stack)  # noqa: SLF001  what bench opens
        assert list(lanes) == [
            Way(cuda_graph=True),
            Way(transfers=False, cuda_graph=True),
            Way(clock="cuda events", transfers=False, cuda_graph=True),
            Way(clock="cuda events", cuda_graph=True),
        ]
        assert [str(way) for way in lanes] == [
            "host clock, graph",
            "host clock, no copies, graph",
            "CUDA events, no copies, graph",
            "CUDA events, with copies, graph",
        ]
