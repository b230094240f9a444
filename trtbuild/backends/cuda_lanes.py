"""Calls of a TensorRT session timed by the GPU itself: CUDA events around them.

Not imported on a machine without a driver.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pycuda.driver as cuda

from trtbuild.backends import cuda_device
from trtbuild.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from trtbuild.backends.cuda_device import Device
    from trtbuild.backends.session import LoadedSession

    Arrays = Mapping[str, npt.NDArray[Any]]

_AHEAD = 2
"""Calls enqueued before the timed one: while the GPU works on them the host enqueues it, so
that the time between the events is the GPU's and not that of Python."""

_FEW_ELEMENTS = 16
"""Integer inputs up to this size may be shapes, which TensorRT reads on the host."""


class Buffer:
    """Device memory that a session's ``run_device`` takes, and its pinned host side."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.host: npt.NDArray[Any] = cuda.pagelocked_empty(array.size, array.dtype).reshape(
            array.shape
        )
        self.host[...] = array
        self.memory = cuda.mem_alloc(max(array.nbytes, 1))
        if array.nbytes:
            cuda.memcpy_htod(self.memory, self.host)

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """CUDA Array Interface, version 3; ready, since its copy has ended."""
        return {
            "shape": self.host.shape,
            "typestr": self.host.dtype.str,
            "data": (int(self.memory), False),
            "version": 3,
            "strides": None,
            "stream": None,
        }


@contextlib.contextmanager
def open_lanes(
    session: LoadedSession, arrays: Arrays, index: int
) -> Iterator[dict[bool, EventLane]]:
    """Lend lanes by whether their time has the copies between pinned memory and device.

    ``index`` is the GPU that the session runs on, in the driver's order.
    """
    device = cuda_device.device(index)
    with device.active():
        call = _Call(session, arrays)
    try:
        yield {copies: EventLane(device, call, copies=copies) for copies in (False, True)}
    finally:
        with device.active():
            call.close()


class _Call:
    """One call on buffers that stay, so that a session may replay it as a CUDA graph."""

    def __init__(self, session: LoadedSession, arrays: Arrays) -> None:
        self._session = session
        self.stream = cuda.Stream()
        self.inputs = {name: Buffer(array) for name, array in arrays.items()}
        try:
            self._given: dict[str, object] = dict(self.inputs)
            found = session.run_device(self._given)
        except UsageError:  # an input that is a shape must be on the host
            small = {n: a for n, a in arrays.items() if a.size <= _FEW_ELEMENTS}
            self.inputs = {n: b for n, b in self.inputs.items() if n not in small}
            self._given = {**self.inputs, **small}
            found = session.run_device(self._given)
        self.outputs = {
            name: Buffer(np.empty(array.shape, np.dtype(array.dtype)))
            for name, array in found.items()
            if not isinstance(array, np.ndarray) and array.dtype != "bfloat16"
        }
        try:
            session.run_device(self._given, self.outputs)
        except UsageError:  # a shape that depends on values: the session makes the output
            self.outputs = {}

    def enqueue(self) -> None:
        """Enqueue the call in the stream."""
        self._session.run_device(self._given, self.outputs, self.stream.handle)

    def close(self) -> None:
        """Free the device memory; the device must be current."""
        self.stream.synchronize()
        for buffer in (*self.inputs.values(), *self.outputs.values()):
            buffer.memory.free()


class EventLane:
    """Calls timed between two CUDA events of one stream."""

    def __init__(self, device: Device, call: _Call, *, copies: bool) -> None:
        self._device = device
        self._call = call
        self._copies = copies
        with device.active():
            self._start, self._end = cuda.Event(), cuda.Event()

    def call(self) -> float:
        """Return the milliseconds that the GPU took for one call."""
        call = self._call
        with self._device.active():
            for _ in range(_AHEAD):
                call.enqueue()
            self._start.record(call.stream)
            if self._copies:
                for buffer in call.inputs.values():
                    cuda.memcpy_htod_async(buffer.memory, buffer.host, call.stream)
            call.enqueue()
            if self._copies:
                for buffer in call.outputs.values():
                    cuda.memcpy_dtoh_async(buffer.host, buffer.memory, call.stream)
            self._end.record(call.stream)
            self._end.synchronize()
            return float(self._start.time_till(self._end))
