"""What a session costs over a bare loop of ``execute_async_v3`` with the same copies.

    python -m tests.benchmarks.runtime_overhead ENGINE [--store URI] [--calls 2000]

ENGINE is one of the store, for this machine's GPU. The loops take turns on one thread: the bare
one with everything bound beforehand, the session with and without CUDA graphs. Prints medians
in microseconds of the clock, and the overhead: the median of the rounds' differences.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

import trtbuild
from trtbuild.backends import cuda_device, gpu, trt_session
from trtbuild.backends.session import Plan, SessionOptions
from trtbuild.backends.trt_engine import Engine
from trtbuild.engine import Manifest
from trtbuild.runtime import warmup
from trtbuild.store import Store, find_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trtbuild.batches import Array

ROUNDS = 15


class BareLoop:
    """One context whose shapes and addresses are set once, on the GPU that sessions choose.

    The device is current in this thread until :meth:`close`.
    """

    def __init__(self, plan: bytes, manifest: Manifest, feeds: Mapping[str, Array]) -> None:
        target = manifest.preimage.target
        library = trt_session.here(target.backend).library
        assert library is not None
        found = trt_session.library_api(target.backend, library.module)
        device = self.device = cuda_device.device(gpu.index_for(target))
        device.enter()
        self.memories: list[Any] = []
        self.pinned: list[Any] = []
        self.engine = Engine(Plan(engine=plan), found, SessionOptions())
        self.stream = cuda_device.Stream()
        scratch = device.allocate(max(self.engine.scratch_bytes, 256))
        self.context = self.engine.new_context(int(scratch))
        self.memories.append(scratch)
        self.copies_in, self.copies_out = [], []
        for name, array in feeds.items():
            self.context.set_input_shape(name, array.shape)
            self.copies_in.append((*self._bind(name, array.nbytes), array))
        for spec in self.engine.outputs:
            shape = tuple(self.context.get_tensor_shape(spec.name))
            array = np.empty(shape, spec.dtype)
            self.copies_out.append((*self._bind(spec.name, array.nbytes), array))

    def _bind(self, name: str, size: int) -> tuple[Any, Any]:
        memory, host = self.device.allocate(size), self.device.pin(size)
        self.memories.append(memory)
        self.pinned.append(host)
        self.context.set_tensor_address(name, int(memory))
        return memory, host

    def __call__(self) -> None:
        for memory, host, array in self.copies_in:
            np.copyto(host, array.reshape(-1).view(np.uint8))
            self.stream.to_device(memory, host)
        self.context.execute_async_v3(self.stream.handle)
        for memory, host, _ in self.copies_out:
            self.stream.to_host(host, memory)
        self.stream.synchronize()
        for _, host, array in self.copies_out:
            np.copyto(array.reshape(-1).view(np.uint8), host)

    def close(self) -> None:
        """Free everything while the device is current: PyCUDA aborts the process else."""
        self.stream.close()
        self.context = None
        self.engine.close()
        for memory in self.memories:
            self.device.free(memory)
        for host in self.pinned:
            self.device.unpin(host)
        self.device.leave()


def median_us(call: Callable[[], object], calls: int) -> float:
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1000)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine")
    parser.add_argument("--store", default="")
    parser.add_argument("--calls", type=int, default=2000)
    given = parser.parse_args()
    store = Store.open(given.store)
    manifest = find_engine(store, given.engine).read(Manifest)
    with ExitStack() as stack:
        plain = trtbuild.load(given.engine, given.store, contexts=1, cuda_graphs=False)
        graphed = trtbuild.load(given.engine, given.store, contexts=1, warmup=5)
        for session in (plain, graphed):
            stack.enter_context(session)
        feeds = warmup.samples(plain.inputs, manifest.preimage.profiles)[0]
        bare = BareLoop(store.read(manifest.sha256), manifest, feeds)
        stack.callback(bare.close)
        loops: dict[str, Callable[[], object]] = {
            "bare loop": bare,
            "session": lambda: plain.run(feeds),
            "session, CUDA graphs": lambda: graphed.run(feeds),
        }
        times = in_turns(loops, given.calls // ROUNDS)
    for name, found in times.items():
        over = statistics.median(a - b for a, b in zip(found, times["bare loop"], strict=True))
        print(f"{name:22} {statistics.median(found):9.1f} us   over bare {over:+8.1f} us")


def in_turns(loops: Mapping[str, Callable[[], object]], calls: int) -> dict[str, list[float]]:
    """Return the median of each round, by the name of a loop."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(ROUNDS):
        for name, call in loops.items():
            times[name].append(median_us(call, calls))
    return times


if __name__ == "__main__":
    main()
