"""Calls of a TensorRT session on arrays of the GPU, timed by the GPU itself or by the host.

Not imported on a machine without a driver.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from trtbuild.backends import cuda_device
from trtbuild.backends.device_arrays import DeviceArray
from trtbuild.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from trtbuild.backends.cuda_device import Device
    from trtbuild.backends.session import LoadedSession

    Arrays = Mapping[str, npt.NDArray[Any]]


class Closable(Protocol):
    """What the device must be current for when it is closed."""

    def close(self) -> None:
        """Free it."""


Closed = TypeVar("Closed", bound=Closable)

_UNHELD = 8
"""Calls before the GPU is held: they load kernels and capture graphs, which may wait for it."""

_PATIENCE_S = 1.0
"""A GPU that is held for longer is let go: something waits for it."""

_LOOK_S = 0.05
_NS_PER_MS = 1e6


class Buffer:
    """Device memory that a session's ``run_device`` takes, and its pinned host side."""

    def __init__(self, device: Device, array: npt.NDArray[Any]) -> None:
        self._device = device
        self.pinned = device.pin(max(array.nbytes, 1))
        self.host = self.pinned[: array.nbytes]
        values = self.host.view(array.dtype).reshape(array.shape)
        values[...] = array
        self._shape, self._typestr = array.shape, array.dtype.str
        self.memory = device.allocate(max(array.nbytes, 1))

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """CUDA Array Interface, version 3; ready, since its copy has ended."""
        return {
            "shape": self._shape,
            "typestr": self._typestr,
            "data": (int(self.memory), False),
            "version": 3,
            "strides": None,
            "stream": None,
        }

    def close(self) -> None:
        """Free both sides."""
        self._device.free(self.memory)
        self._device.unpin(self.pinned)


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """The ways to time a session on arrays of the GPU.

    ``events`` by whether the copies between pinned memory and device are timed too; where no
    output can be copied, because its shape depends on values, there is none with copies.
    ``host`` is by the host's clock, and without copies.
    """

    events: Mapping[bool, EventLane]
    host: DeviceLane


@contextlib.contextmanager
def open_lanes(session: LoadedSession, arrays: Arrays, index: int) -> Iterator[Lanes]:
    """Lend the lanes of a session on the GPU ``index``, in the driver's order."""
    device = cuda_device.device(index)
    with contextlib.ExitStack() as stack:
        call = _Call(session, arrays, device, stack)
        with device.active():
            timer = call.kept(stack, cuda_device.Timer())
        events = {False: EventLane(device, call, timer, copies=False)}
        if call.outputs:
            events[True] = EventLane(device, call, timer, copies=True)
        with call.watched():
            yield Lanes(events=events, host=DeviceLane(call))


class _Call:
    """One call on buffers that stay, so that a session may replay it as a CUDA graph.

    ``held`` tells whether the GPU waits until everything is enqueued. Where tensors lie on the
    host, or shapes depend on values, a call waits for the GPU: it cannot be held then, and
    between the events is the time of the host too.
    """

    def __init__(
        self,
        session: LoadedSession,
        arrays: Arrays,
        device: Device,
        stack: contextlib.ExitStack,
    ) -> None:
        self._session = session
        self._device = device
        self._since = 0.0
        with device.active():
            self.stream = self.kept(stack, cuda_device.Stream())
            self.hold = self.kept(stack, cuda_device.Hold(device))
            self.inputs: dict[str, Buffer] = {}
            for name, array in arrays.items():
                if name not in session.host_tensors:
                    self.inputs[name] = self.kept(stack, Buffer(device, array))
            for buffer in self.inputs.values():
                self.stream.to_device(buffer.memory, buffer.host)
            self.stream.synchronize()
            self.given: dict[str, object] = {**arrays, **self.inputs}
            found = session.run_device(self.given)
            self.outputs = {n: a for n, a in found.items() if isinstance(a, DeviceArray)}
            self.held = not session.host_tensors
            try:
                session.run_device(self.given, self.outputs)
            except UsageError:  # a shape that depends on values: the session makes the output
                self.outputs, self.held = {}, False
            self.results = {n: device.pin(max(a.nbytes, 1)) for n, a in self.outputs.items()}
        stack.callback(self._unpin)

    def kept(self, stack: contextlib.ExitStack, made: Closed) -> Closed:
        """Close what was made when the stack is left, the device current."""

        def close() -> None:
            with self._device.active():
                made.close()

        stack.callback(close)
        return made

    def _unpin(self) -> None:
        with self._device.active():
            self.stream.synchronize()
            for memory in self.results.values():
                self._device.unpin(memory)

    def enqueue(self) -> None:
        """Enqueue the call in the stream."""
        self._session.run_device(self.given, self.outputs, self.stream.handle)

    def run(self) -> None:
        """Run the call, and wait for its end."""
        self._session.run_device(self.given, self.outputs)

    def send(self) -> None:
        """Enqueue the copies of the inputs."""
        for buffer in self.inputs.values():
            if buffer.host.nbytes:
                self.stream.to_device(buffer.memory, buffer.host)

    def receive(self) -> None:
        """Enqueue the copies of the outputs."""
        for name, array in self.outputs.items():
            if array.nbytes:
                self.stream.to_host(self.results[name][: array.nbytes], array.address)

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Hold the stream while the body enqueues."""
        self._since = time.monotonic()
        self.hold.hold(self.stream)
        try:
            yield
        finally:
            self.hold.let_go()
            self._since = 0.0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Let a stream go that is held for too long, and hold none any more."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_LOOK_S):
                since = self._since
                if since and time.monotonic() - since > _PATIENCE_S:
                    self.held = False
                    self.hold.let_go()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class EventLane:
    """Calls timed between two CUDA events of one stream."""

    def __init__(
        self, device: Device, call: _Call, timer: cuda_device.Timer, *, copies: bool
    ) -> None:
        self._device = device
        self._call = call
        self._copies = copies
        self._calls = 0
        self._timer = timer

    @property
    def host_bound(self) -> bool:
        """Whether the host's time may be between the events: the GPU cannot wait for it."""
        return not self._call.held

    def call(self) -> float:
        """Return the milliseconds that the GPU took for one call."""
        self._calls += 1
        call = self._call
        with self._device.active():
            held = call.held and self._calls > _UNHELD
            with call.holding() if held else contextlib.nullcontext():
                call.enqueue()  # one ahead: what the GPU begins with is not what is timed
                self._timer.start(call.stream)
                if self._copies:
                    call.send()
                call.enqueue()
                if self._copies:
                    call.receive()
                self._timer.stop(call.stream)
            return self._timer.milliseconds()


class DeviceLane:
    """Calls timed by the host's clock, arrays of the GPU in and out: nothing is copied."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    def call(self) -> float:
        """Return the milliseconds of one call, from before it to the end of its work."""
        start = time.perf_counter_ns()
        self._call.run()
        return (time.perf_counter_ns() - start) / _NS_PER_MS
