"""How many inferences per second, from how many threads, and for how much energy.

An inference is one sample: a call of batch size 8 is eight of them.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

from trtbuild.engine import Value
from trtbuild.verification.intervals import mean
from trtbuild.verification.results import Interval
from trtbuild.verification.turns import no_collection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trtbuild.backends.meter import Meter

_SEED = 20_250_103
_ENERGY_WINDOW_S = 1.0
_NS_PER_MS = 1e6
_NS_PER_S = 1e9
_PER_MILLION = 1e6
_SECONDS_PER_HOUR = 3600.0
_LEAST_WINDOWS = 3


class RatePlan(Value, frozen=True, kw_only=True):
    """How long to measure throughput.

    Each engine and number of ``threads`` gets ``windows`` of equal length, ``seconds`` in
    all. On a device that counts its energy a window lasts 1 s at least: NVIDIA's counter moves
    every 20 to 100 ms.
    """

    threads: tuple[Annotated[int, msgspec.Meta(ge=1, le=256)], ...] = (1,)
    seconds: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    windows: Annotated[int, msgspec.Meta(ge=_LEAST_WINDOWS)] = 5


class Energy(Value, frozen=True, kw_only=True):
    """What an inference costs a whole device; ``idle_share`` of it is used without work too.

    ``idle_share`` is ``None`` where the device's idle power could not be measured.
    """

    mj_per_inference: Interval
    watts: float
    idle_share: float | None


class Rate(Value, frozen=True, kw_only=True):
    """The throughput of one engine, called by ``threads`` that each wait for their result.

    ``p50_ms`` and ``p99_ms`` are of a call under this load, ``intervals`` has the 95 % interval
    of each (``p50``, ``p99``). ``graph_share`` is the share of calls that were CUDA graphs.
    ``energy`` is ``None`` for the reason ``no_energy``.
    """

    threads: int
    inferences_per_s: Interval
    p50_ms: float
    p99_ms: float
    calls: int
    energy: Energy | None
    no_energy: str
    intervals: dict[str, tuple[float, float]] = msgspec.field(default_factory=dict)
    graph_share: float = 0.0

    def cost_per_million(self, price_per_hour: float) -> float:
        """Return what a million inferences cost on a machine of this price per hour."""
        hours = _PER_MILLION / self.inferences_per_s.value / _SECONDS_PER_HOUR
        return price_per_hour * hours


def no_graphs() -> float:
    """Return how many calls were CUDA graphs on a device that has none."""
    return 0


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Something that many threads may call at once, and how many inferences a call is.

    ``graphs`` tells how many calls so far were CUDA graphs.
    """

    call: Callable[[], object]
    batch_size: int
    graphs: Callable[[], float] = no_graphs


@dataclass(frozen=True, kw_only=True)
class _Window:
    calls_per_s: float
    times_ms: list[float]
    seconds: float
    energy_mj: int | None
    graphs: float


def rates(
    workers: Mapping[str, Worker], plan: RatePlan, meter: Meter
) -> dict[str, tuple[Rate, ...]]:
    """Return one rate per worker and number of threads; windows of all of them take turns."""
    cells = [(name, threads) for name in workers for threads in plan.threads]
    seconds = plan.seconds / plan.windows
    if meter.energy_mj() is not None:
        seconds = max(seconds, _ENERGY_WINDOW_S)
    idle_watts = _idle_watts(meter)
    order = np.random.default_rng(_SEED)
    windows: dict[tuple[str, int], list[_Window]] = {cell: [] for cell in cells}
    with no_collection():
        for _ in range(plan.windows):
            for index in order.permutation(len(cells)):
                name, threads = cells[index]
                found = _window(workers[name], threads, seconds, meter)
                windows[name, threads].append(found)
    absent = meter.absent.get("energy_mj", "")
    return {
        name: tuple(
            _rate(windows[name, threads], threads, worker.batch_size, (idle_watts, absent))
            for threads in plan.threads
        )
        for name, worker in workers.items()
    }


def _idle_watts(meter: Meter) -> float | None:
    """Return the power of a device with everything loaded and nothing to do."""
    before, start = meter.energy_mj(), time.perf_counter()
    if before is None:
        return None
    time.sleep(_ENERGY_WINDOW_S)
    after = meter.energy_mj()
    if after is None:
        return None
    return (after - before) / 1000 / (time.perf_counter() - start)


def _window(worker: Worker, threads: int, seconds: float, meter: Meter) -> _Window:
    """Call from ``threads`` for ``seconds``; each thread's first call is not counted.

    A thread's rate is over the time to the end of its own last call, so that a call which
    outlasts the window counts in full on both sides.
    """
    barrier = threading.Barrier(threads + 1)
    call = worker.call

    def work() -> tuple[list[float], float]:
        try:
            call()
        except BaseException:
            barrier.abort()
            raise
        barrier.wait()
        start = time.perf_counter_ns()
        end = start + round(seconds * _NS_PER_S)
        times: list[float] = []
        now = start
        while now < end:
            call()
            before, now = now, time.perf_counter_ns()
            times.append((now - before) / _NS_PER_MS)
        return times, (now - start) / _NS_PER_S

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(work) for _ in range(threads)]
        try:
            barrier.wait()
        except threading.BrokenBarrierError:
            for future in futures:
                error = future.exception()
                if error and not isinstance(error, threading.BrokenBarrierError):
                    raise error from None
            raise
        energy, start = meter.energy_mj(), time.perf_counter()
        graphs = worker.graphs()
        results = [future.result() for future in futures]
        elapsed, after = time.perf_counter() - start, meter.energy_mj()
    return _Window(
        calls_per_s=sum(len(times) / took for times, took in results),
        times_ms=[each for times, _ in results for each in times],
        seconds=elapsed,
        energy_mj=None if energy is None or after is None else after - energy,
        graphs=worker.graphs() - graphs,
    )


def _rate(
    windows: Sequence[_Window],
    threads: int,
    batch_size: int,
    power: tuple[float | None, str],
) -> Rate:
    times = np.concatenate([window.times_ms for window in windows])
    p50, p99 = np.percentile(times, (50, 99))
    energy, no_energy = _energy(windows, batch_size, power)
    return Rate(
        threads=threads,
        inferences_per_s=_mean([batch_size * window.calls_per_s for window in windows]),
        p50_ms=float(p50),
        p99_ms=float(p99),
        calls=len(times),
        energy=energy,
        no_energy=no_energy,
        intervals={"p50": _around(p50, windows, 50), "p99": _around(p99, windows, 99)},
        graph_share=min(1.0, sum(window.graphs for window in windows) / len(times)),
    )


def _around(value: float, windows: Sequence[_Window], quantile: int) -> tuple[float, float]:
    """Return the interval of a percentile, by how much those of the windows differ.

    Calls of one window share what disturbs it, and so do threads: windows are what is
    independent. The percentile of all calls is never outside.
    """
    found = _mean([float(np.percentile(each.times_ms, quantile)) for each in windows])
    return min(found.low, float(value)), max(found.high, float(value))


def _mean(values: Sequence[float]) -> Interval:
    """Return the mean of what is never negative: neither is the low end of its interval."""
    found = mean(values)
    return msgspec.structs.replace(found, low=max(0.0, found.low))


def _energy(
    windows: Sequence[_Window], batch_size: int, power: tuple[float | None, str]
) -> tuple[Energy | None, str]:
    idle_watts, absent = power
    used = [(w.energy_mj, len(w.times_ms), w.seconds) for w in windows if w.energy_mj]
    if absent or len(used) < len(windows):
        return None, absent or "the energy counter stood still while the engine worked"
    watts = sum(mj for mj, _, _ in used) / 1000 / sum(seconds for _, _, seconds in used)
    found = Energy(
        mj_per_inference=_mean([mj / (calls * batch_size) for mj, calls, _ in used]),
        watts=watts,
        idle_share=None if idle_watts is None else min(1.0, idle_watts / watts),
    )
    return found, ""
