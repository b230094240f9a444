"""Calls of a TensorRT session timed by the GPU itself: CUDA events around them.

Not imported on a machine without a driver.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pycuda.driver as cuda

from trtbuild.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[Any]]

_AHEAD = 2
"""Calls enqueued before the timed one: while the GPU works on them the host enqueues it, so
that the time between the events is the GPU's and not that of Python."""

_FEW_ELEMENTS = 16
"""Integer inputs up to this size may be shapes, which TensorRT reads on the host."""


class OnDevice(Protocol):
    """A session that takes and gives arrays of the GPU, in a stream of the caller."""

    def run_device(
        self,
        inputs: Mapping[str, object],
        outputs: Mapping[str, object] | None = ...,
        stream: int | None = ...,
    ) -> dict[str, Any]:
        """Enqueue a call in ``stream``, or finish it where there is none."""


class Buffer:
    """Device memory that :meth:`OnDevice.run_device` takes, and its pinned host side."""

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


def open_lanes(session: OnDevice, arrays: Arrays, device: int) -> dict[bool, EventLane]:
    """Return lanes by whether their time has the copies between pinned memory and device.

    ``device`` is the GPU that the session runs on, in the driver's order.
    """
    cuda.init()
    context = cuda.Device(device).retain_primary_context()
    with _current(context):
        call = _Call(session, arrays)
    return {copies: EventLane(context, call, copies=copies) for copies in (False, True)}


@contextlib.contextmanager
def _current(context: Any) -> Iterator[None]:  # noqa: ANN401  untyped bindings
    context.push()
    try:
        yield
    finally:
        cuda.Context.pop()


class _Call:
    """One call on buffers that stay, so that a session may replay it as a CUDA graph."""

    def __init__(self, session: OnDevice, arrays: Arrays) -> None:
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
        self._session.run_device(self._given, self.outputs, self.stream.handle)


class EventLane:
    """Calls timed between two CUDA events of one stream."""

    def __init__(self, context: Any, call: _Call, *, copies: bool) -> None:  # noqa: ANN401  untyped bindings
        self._context = context
        self._call = call
        self._copies = copies
        with _current(context):
            self._start, self._end = cuda.Event(), cuda.Event()

    def call(self) -> float:
        """Return the milliseconds that the GPU took for one call."""
        call = self._call
        with _current(self._context):
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
