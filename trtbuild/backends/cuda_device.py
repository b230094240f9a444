"""One GPU: its primary context, streams, memory, events and graphs. All CUDA calls are here.

PyCUDA on the device's primary context, which frameworks of the same process use too. Graphs,
and events that other libraries' streams wait for, come from cuda-bindings: PyCUDA has no graphs
and its events have no handle. Not imported on a machine without a driver.

PyCUDA frees an object only in a thread in which its context is current, and leaks it elsewhere
(scoped_context_activation in its cuda.hpp). So everything here is freed by name, inside of
:meth:`Device.active`, never left to the garbage collector.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pycuda.driver as cuda
from cuda.bindings import driver

from trtbuild.backends.compatibility import memory_refusal
from trtbuild.backends.pool import NoRoomError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, cuda.h: no implicit order with the default stream
_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING, cuda.h

MARGIN_BYTES = 64 << 20
"""Left free beside what an engine says that it needs: kernels are loaded when first used."""


class CudaError(Exception):
    """A call of cuda-bindings failed; the message has the name of the CUDA error."""


FAILURES = (cuda.Error, CudaError)
"""What any call here, or TensorRT's use of the device, can raise."""


_SUCCESS = driver.CUresult.CUDA_SUCCESS


@functools.lru_cache(maxsize=64)
def _native(stream: int) -> Any:  # noqa: ANN401  untyped bindings
    """Return a stream of another library as cuda-bindings takes it."""
    return driver.CUstream(stream)


def _checked(result: tuple[Any, ...]) -> Any:  # noqa: ANN401  untyped bindings
    """Return the value of a call of cuda-bindings, which returns its error code first."""
    code = result[0]
    if code != _SUCCESS:
        raise CudaError(code.name)
    return result[1] if len(result) > 1 else None


@functools.cache
def device(index: int) -> Device:
    """Return the GPU with this index in the driver's order; one object in a process."""
    cuda.init()
    return Device(index)


class Device:
    """A GPU; ``lock`` is held while its free memory is asked and then taken."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.lock = threading.Lock()
        self._context = cuda.Device(index).retain_primary_context()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the device current in this thread."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """Make the device current in this thread, until :meth:`leave`."""
        self._context.push()

    @staticmethod
    def leave() -> None:
        """Make current again what was before :meth:`enter`."""
        cuda.Context.pop()

    @staticmethod
    def free_bytes() -> int:
        """Return the device memory that nobody uses now."""
        return int(cuda.mem_get_info()[0])

    def require(self, what: str, needed: int) -> None:
        """Refuse what needs more memory than is free, :data:`MARGIN_BYTES` left.

        Raises:
            NoRoomError: the message says how much is needed and how much is free.
        """
        reason = memory_refusal(what, needed + MARGIN_BYTES, self.free_bytes())
        if reason:
            raise NoRoomError(reason)

    @staticmethod
    def allocate(size: int) -> Any:  # noqa: ANN401  untyped bindings
        """Return device memory; ``int()`` of it is its address.

        Raises:
            NoRoomError: there is not enough.
        """
        try:
            return cuda.mem_alloc(size)
        except cuda.MemoryError as error:
            free = int(cuda.mem_get_info()[0])
            raise NoRoomError(memory_refusal("a tensor", max(size, free + 1), free)) from error

    @staticmethod
    def free(memory: Any) -> None:  # noqa: ANN401  untyped bindings
        """Free device memory, when all work that was enqueued before is done."""
        memory.free()

    @staticmethod
    def pin(size: int) -> npt.NDArray[np.uint8]:
        """Return page-locked host memory, which the device copies from without a detour.

        Raises:
            NoRoomError: there is not enough.
        """
        try:
            found: npt.NDArray[np.uint8] = cuda.pagelocked_empty(size, np.uint8)
        except cuda.MemoryError as error:
            message = (
                f"a tensor needs {size >> 20} MiB of page-locked host memory, which the driver "
                "does not give: free memory of this machine, or give fewer contexts"
            )
            raise NoRoomError(message) from error
        return found

    @staticmethod
    def unpin(memory: npt.NDArray[np.uint8]) -> None:
        """Free what :meth:`pin` returned; arrays that view it are dead."""
        base: Any = memory.base
        base.free()


class Stream:
    """A stream of the current device, and what is enqueued in it."""

    def __init__(self) -> None:
        self._stream: Any = cuda.Stream(_NON_BLOCKING)
        self.handle = int(self._stream.handle)
        self._native = driver.CUstream(self.handle)
        self._event = _checked(driver.cuEventCreate(_DISABLE_TIMING))

    @property
    def native(self) -> Any:  # noqa: ANN401  untyped bindings
        """PyCUDA's own object."""
        return self._stream

    def wait_for(self, other: int) -> None:
        """Let what is enqueued here from now on wait for what is enqueued in ``other``."""
        _checked(driver.cuEventRecord(self._event, _native(other)))
        _checked(driver.cuStreamWaitEvent(self._native, self._event, 0))

    def hold_back(self, other: int) -> None:
        """Let what is enqueued in ``other`` from now on wait for what is enqueued here."""
        _checked(driver.cuEventRecord(self._event, self._native))
        _checked(driver.cuStreamWaitEvent(_native(other), self._event, 0))

    def to_device(self, memory: Any, host: npt.NDArray[Any]) -> None:  # noqa: ANN401  untyped bindings
        """Enqueue a copy from pinned host memory."""
        cuda.memcpy_htod_async(memory, host, self._stream)

    def to_host(self, host: npt.NDArray[Any], memory: Any) -> None:  # noqa: ANN401  untyped bindings
        """Enqueue a copy to pinned host memory."""
        cuda.memcpy_dtoh_async(host, memory, self._stream)

    def synchronize(self) -> None:
        """Wait for everything that is enqueued here; other Python threads run meanwhile."""
        self._stream.synchronize()

    def capture(self, enqueue: Callable[[], None]) -> Any:  # noqa: ANN401  untyped bindings
        """Return a graph of what ``enqueue`` enqueues here, without running it.

        Other threads may use the device meanwhile ("thread local" capture).

        Raises:
            CudaError: something in it cannot be captured; the stream is usable again.
        """
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _checked(driver.cuStreamBeginCapture(self._native, mode))
        try:
            enqueue()
        except BaseException:
            # Ends the capture, invalid by now or not; what it gave so far is dropped.
            code, graph = driver.cuStreamEndCapture(self._native)
            if code == _SUCCESS:
                driver.cuGraphDestroy(graph)
            raise
        graph = _checked(driver.cuStreamEndCapture(self._native))
        try:
            return _checked(driver.cuGraphInstantiate(graph, 0))
        finally:
            driver.cuGraphDestroy(graph)

    def launch(self, graph: Any) -> None:  # noqa: ANN401  untyped bindings
        """Enqueue a graph."""
        _checked(driver.cuGraphLaunch(graph, self._native))

    @staticmethod
    def drop(graph: Any) -> None:  # noqa: ANN401  untyped bindings
        """Free a graph, when what runs of it is done."""
        driver.cuGraphExecDestroy(graph)

    def close(self) -> None:
        """Wait for what is enqueued, and free the stream; the device must be current."""
        if self._stream is None:
            return
        self._stream.synchronize()
        driver.cuEventDestroy(self._event)
        self._stream = None


class Timer:
    """Two CUDA events of the current device: how long the GPU took between them."""

    def __init__(self) -> None:
        self._start: Any = cuda.Event()
        self._end: Any = cuda.Event()

    def start(self, stream: Stream) -> None:
        """Enqueue the first event."""
        self._start.record(stream.native)

    def stop(self, stream: Stream) -> None:
        """Enqueue the second event."""
        self._end.record(stream.native)

    def milliseconds(self) -> float:
        """Wait for the second event, and return the time between both."""
        self._end.synchronize()
        return float(self._start.time_till(self._end))

    def close(self) -> None:
        """Free both events; the device must be current."""
        self._start = self._end = None


class Hold:
    """Keeps a stream from starting what is enqueued after it, until it is let go.

    So that a host which enqueues more slowly than the GPU works leaves no gaps. Whoever waits
    for the stream meanwhile waits for ever.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory = device.pin(4)
        self._flag = self._memory.view(np.uint32)

    def hold(self, stream: Stream) -> None:
        """Hold a stream that nobody holds."""
        self._flag[0] = 0
        # Pinned memory has one address on host and device (CUDA C++ Programming Guide,
        # "Unified Virtual Address Space").
        address, equal = self._flag.ctypes.data, driver.CUstreamWaitValue_flags
        flags = int(equal.CU_STREAM_WAIT_VALUE_EQ)
        _checked(driver.cuStreamWaitValue32(_native(stream.handle), address, 1, flags))

    def let_go(self) -> None:
        """Let the stream go on; from any thread, and as often as one likes."""
        self._flag[0] = 1

    def close(self) -> None:
        """Free it, when no stream is held any more."""
        self.let_go()
        self._device.unpin(self._memory)


def order(first: int, then: int) -> None:
    """Let ``then`` wait for what is enqueued in ``first``, two streams of other libraries."""
    event = _checked(driver.cuEventCreate(_DISABLE_TIMING))
    try:
        _checked(driver.cuEventRecord(event, _native(first)))
        _checked(driver.cuStreamWaitEvent(_native(then), event, 0))
    finally:
        driver.cuEventDestroy(event)


def wait(stream: int) -> None:
    """Wait for a stream of another library."""
    _checked(driver.cuStreamSynchronize(_native(stream)))


def device_of(address: int) -> int:
    """Return the place of the GPU whose memory is at ``address``, -1 where it is of none."""
    attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    code, found = driver.cuPointerGetAttribute(attribute, address)
    return int(found) if code == _SUCCESS else -1


def copy_to_host(host: npt.NDArray[Any], address: int) -> None:
    """Copy device memory to a C-contiguous array, waiting for it."""
    cuda.memcpy_dtoh(host, address)
