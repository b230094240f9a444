"""What the real PyCUDA and cuda-bindings do for sessions, above a driver made of host memory.

``python -m tests.runtime.on_fake_driver NAME [CALLS]`` runs one function of this module, in a
process whose ``libcuda.so.1`` is ``fake_driver.c``, and prints what is not freed at its end.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.benchmarks import runtime_overhead
from tests.runtime import simulated
from trtbuild.backends import cuda_device, cuda_lanes, memory, trt_device
from trtbuild.backends.session import Plan, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.runtime.simulated import Array
    from trtbuild.backends.session import LoadedSession
    from trtbuild.verification.turns import Lane

DRIVER = ctypes.CDLL("libcuda.so.1")
DRIVER.fake_call.argtypes = [ctypes.c_long]
WHAT = ("device", "pinned", "streams", "events", "graphs", "executables", "depth")


class Device(simulated.Device):
    """Its memory is the driver's, and so is what runs when."""

    def __init__(self) -> None:
        super().__init__()
        self.works: list[Callable[[], None]] = []

    def do(self, work: Callable[[], None]) -> None:
        self.works.append(work)
        assert DRIVER.fake_call(len(self.works) - 1) == 0

    def at(self, address: int, size: int) -> Array:
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


DEVICE = Device()
ENGINE = ctypes.CFUNCTYPE(None, ctypes.c_long)(lambda index: DEVICE.works[index]())
DRIVER.fake_engine(ENGINE)


@contextlib.contextmanager
def opened(**options: Any) -> Iterator[LoadedSession]:  # noqa: ANN401  those of SessionOptions
    late = options.pop("late", False)
    api: Any = simulated.Api(DEVICE, late=late)
    plan = Plan(engine=b"plan")
    with trt_device.open_engine(plan, 0, api, SessionOptions(**options), {}) as session:
        yield session


def rows(count: int, start: float = 0) -> Array:
    return np.arange(start, start + 4 * count, dtype=np.float32).reshape(count, 4)


def host_arrays() -> None:
    with opened(contexts=3) as session:

        def call(number: int) -> None:
            x = rows(1 + number % 64, number)
            np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(call, range(500)))


def graphs() -> None:
    with opened(contexts=1) as session:
        for turn in range(12):
            x = rows(3, turn)
            np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
        replayed = session.stats.value("graph_launches")
        failed = session.stats.value("graph_fallbacks")
        assert (replayed > 0) != (failed > 0)


def device_arrays() -> None:
    with opened() as session:
        x = session.run_device({"x": rows(2)})["y"]
        y = session.run_device({"x": x}, stream=0)["y"]
        for stream in (None, 0, 1) * 4:
            assert session.run_device({"x": x}, {"y": y}, stream)["y"] is y
        np.testing.assert_array_equal(y.numpy(), 4 * rows(2))
        assert session.stats.value("graph_launches") > 0


def late_outputs() -> None:
    with opened(late=True) as session:
        for start in (-4, -100, 0):
            x = rows(4, start)
            np.testing.assert_array_equal(session.run({"x": x})["y"], x[x > 0])
            found = session.run_device({"x": x})["y"]
            np.testing.assert_array_equal(found.numpy(), x[x > 0])


def lanes() -> None:
    for late in (False, True):
        with (
            opened(late=late) as session,
            cuda_lanes.open_lanes(session, {"x": rows(3)}, 0) as it,
        ):
            every: list[Lane] = [*it.events.values(), it.host]
            for lane in every:
                for _ in range(20):
                    assert lane.call() > 0
            assert [each.host_bound for each in it.events.values()] == (
                [True] if late else [False] * 2
            )


def bare_loop() -> None:
    device = cuda_device.device(0)
    api: Any = simulated.Api(DEVICE)
    with opened() as session, device.active():
        bare = runtime_overhead.BareLoop(b"plan", api, device, {"x": rows(2)})
        bare()
        bare.on_device()
        np.testing.assert_array_equal(bare.copies_out[0][2], 2 * rows(2))
        given, outputs = runtime_overhead.on_gpu(bare, session)
        session.run_device(given, outputs)
        bare.close()


def many_calls(calls: int) -> None:
    """Shapes and addresses that come back keep no memory, whatever is called."""
    with opened(cuda_graphs=False) as session:
        x = [session.run_device({"x": rows(n)})["y"] for n in (1, 2, 8)]
        DEVICE.do = lambda work: work()  # type: ignore[method-assign]  # keeps no list of all

        def repeat(times: int) -> int:
            for number in range(times):
                session.run({"x": rows(1 + number % 3)})
                session.run_device({"x": x[number % 3]}, stream=0)
            gc.collect()
            return memory.rss_bytes()

        before = repeat(2000)
        grown = repeat(calls) - before
        assert grown < 4 << 20, f"{grown} bytes more after {calls} calls of each kind"


def main() -> None:
    name, *counts = sys.argv[1:]
    globals()[name](*map(int, counts))
    gc.collect()
    found = {word: DRIVER.fake_count(index) for index, word in enumerate(WHAT)}
    print(json.dumps(found))  # noqa: T201  the answer to the parent process


if __name__ == "__main__":
    main()
