"""What a session costs over a bare loop of ``execute_async_v3`` with the same copies.

    python -m tests.benchmarks.runtime_overhead ENGINE [--store URI] [--calls 2000]

ENGINE is one of the store, for this machine's GPU. The loops take turns on one thread: the bare
one with everything bound beforehand, the session with and without CUDA graphs; once with host
arrays and the same copies, once with arrays of the GPU and none. Prints medians in microseconds
of the clock, and the overhead: the median of the rounds' differences.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

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

    from trtbuild.backends.cuda_device import Device
    from trtbuild.backends.session import LoadedSession
    from trtbuild.backends.trt_api import Api
    from trtbuild.batches import Array
    from trtbuild.engine import Target

ROUNDS = 15


class BareLoop:
    """One context whose shapes and addresses are set once; ``device`` is current meanwhile."""

    def __init__(
        self, plan: bytes, found: Api, device: Device, feeds: Mapping[str, Array]
    ) -> None:
        self.device = device
        self.memories: list[Any] = []
        self.pinned: list[Any] = []
        self.engine = Engine(Plan(engine=plan), found, SessionOptions(), device.free_bytes)
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

    def on_device(self) -> None:
        """Run on what lies on the device."""
        self.context.execute_async_v3(self.stream.handle)
        self.stream.synchronize()

    def close(self) -> None:
        """Free everything."""
        self.stream.close()
        self.context = None
        self.engine.close()
        for memory in self.memories:
            self.device.free(memory)
        for host in self.pinned:
            self.device.unpin(host)


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
    arguments = parser.parse_args()
    store = Store.open(arguments.store)
    manifest = find_engine(store, arguments.engine).read(Manifest)
    target = manifest.preimage.target
    device = cuda_device.device(gpu.index_for(target))
    with ExitStack() as stack:
        plain = trtbuild.load(arguments.engine, arguments.store, contexts=1, cuda_graphs=False)
        graphed = trtbuild.load(arguments.engine, arguments.store, contexts=1, warmup=5)
        for session in (plain, graphed):
            stack.enter_context(session)
        feeds = warmup.samples(plain.inputs, manifest.preimage.profiles)[0]
        # Left before the process ends: PyCUDA aborts it else.
        stack.enter_context(device.active())
        bare = BareLoop(store.read(manifest.sha256), opened_api(target), device, feeds)
        stack.callback(bare.close)
        given, outputs = on_gpu(bare, plain)
        loops: dict[str, Callable[[], object]] = {
            "bare loop": bare,
            "session": lambda: plain.run(feeds),
            "session, CUDA graphs": lambda: graphed.run(feeds),
            "bare, no copies": bare.on_device,
            "run_device": lambda: plain.run_device(given, outputs),
            "run_device, CUDA graphs": lambda: graphed.run_device(given, outputs),
        }
        times = in_turns(loops, arguments.calls // ROUNDS)
    for baseline in ("bare loop", "bare, no copies"):
        for name in list(loops)[list(loops).index(baseline) :][:3]:
            found = times[name]
            over = statistics.median(a - b for a, b in zip(found, times[baseline], strict=True))
            print(f"{name:24} {statistics.median(found):9.1f} us   over bare {over:+8.1f} us")


def opened_api(target: Target) -> Api:
    found = trt_session.here(target.backend).installed
    assert found is not None
    return trt_session.load_api(target.backend, found.module)


class Placed(NamedTuple):
    """Memory of the bare loop as an array of the GPU."""

    address: int
    array: Array

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return {
            "shape": self.array.shape,
            "typestr": self.array.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }


def on_gpu(bare: BareLoop, session: LoadedSession) -> tuple[dict[str, Placed], ...]:
    """Return inputs and outputs of a session where the bare loop has its own."""
    sides = ((session.inputs, bare.copies_in), (session.outputs, bare.copies_out))
    return tuple(
        {
            spec.name: Placed(int(memory), array)
            for spec, (memory, _, array) in zip(specs, copies, strict=True)
        }
        for specs, copies in sides
    )


def in_turns(loops: Mapping[str, Callable[[], object]], calls: int) -> dict[str, list[float]]:
    """Return the median of each round, by the name of a loop."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(ROUNDS):
        for name, call in loops.items():
            times[name].append(median_us(call, calls))
    return times


if __name__ == "__main__":
    main()
