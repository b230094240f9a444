"""A TensorRT engine, of either flavor, on a GPU: PyCUDA on the device's primary context.

The primary context is the one that frameworks in the same process use, so that they can share
the device. Nothing here is imported on a machine without a driver.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pycuda.driver as cuda

from trtbuild.backends import feeds
from trtbuild.backends.trt_api import api
from trtbuild.engine import TensorSpec
from trtbuild.errors import BuildError, TrustError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from trtbuild.backends import Session
    from trtbuild.backends.trt_api import Api


def open_engine(engine: bytes, device: int, backend: str) -> Session:
    """Return a session of ``engine`` on the GPU with this index in the driver's order.

    Raises:
        TrustError: TensorRT refuses the bytes.
        BuildError: an output has a type that NumPy lacks.
    """
    cuda.init()
    return _TrtSession(engine, cuda.Device(device).retain_primary_context(), api(backend))


class _TrtSession:
    """One engine, one execution context, one stream; calls of ``run`` wait for each other."""

    def __init__(self, engine: bytes, context: Any, found: Api) -> None:  # noqa: ANN401  untyped bindings
        self._api = found
        self._trt = found.trt
        self._messages = found.messages
        self._lock = threading.Lock()
        self._cuda_context = context
        self._buffers: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        with self._on_device():
            self._stream = cuda.Stream()
            # The runtime must outlive its engine, and the engine its context.
            self._runtime = self._trt.Runtime(self._api.logger)
            self._runtime.engine_host_code_allowed = False
            self._engine = self._deserialize(engine)
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise TrustError(self._refusal("gave no execution context"))
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        specs = {name: self._spec(name) for name in names}
        self._inputs = tuple(
            specs[n] for n in names if modes[n] == self._trt.TensorIOMode.INPUT
        )
        self._outputs = tuple(
            specs[n] for n in names if modes[n] == self._trt.TensorIOMode.OUTPUT
        )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that :meth:`run` expects."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs that :meth:`run` returns."""
        return self._outputs

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs by name, on the host.

        Raises:
            UsageError: an array is missing, unknown, or has another type or shape, or a shape
                that is outside of the engine's profile.
            BuildError: the engine failed while it ran.
        """
        feeds.check(self._inputs, inputs)
        with self._lock, self._on_device():
            kept = [self._bind_input(spec.name, inputs[spec.name]) for spec in self._inputs]
            results = {spec.name: self._bind_output(spec) for spec in self._outputs}
            if not self._context.execute_async_v3(self._stream.handle):
                raise BuildError(self._refusal("failed to run the engine"))
            for name, array in results.items():
                cuda.memcpy_dtoh_async(array, self._buffers[name], self._stream)
            self._stream.synchronize()
            del kept  # host copies must live until the stream is done
        return results

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        self._cuda_context.push()
        try:
            yield
        finally:
            self._cuda_context.pop()

    def _deserialize(self, engine: bytes) -> Any:  # noqa: ANN401  untyped bindings
        if self._runtime.engine_host_code_allowed:
            raise TrustError(self._refusal("did not switch off host code in engines"))
        self._messages.errors.clear()
        loaded = self._runtime.deserialize_cuda_engine(engine)
        if loaded is None or self._messages.errors:
            raise TrustError(self._refusal("refuses the engine"))
        return loaded

    def _refusal(self, what: str) -> str:
        detail = "; ".join(dict.fromkeys(self._messages.errors))
        return (
            f"{self._api.title} {what}{': ' + detail if detail else ''}. Build "
            "it again with this version, for this GPU"
        )

    def _spec(self, name: str) -> TensorSpec:
        dtype = self._api.dtype(self._engine.get_tensor_dtype(name))
        if dtype in {"", "bfloat16"}:
            message = (
                f"{name!r} is {dtype or 'of a type'} that NumPy lacks: cast it in the model"
            )
            raise BuildError(message)
        shape = tuple("?" if n < 0 else int(n) for n in self._engine.get_tensor_shape(name))
        return TensorSpec(name=name, dtype=dtype, shape=shape)

    def _bind_input(self, name: str, given: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Copy one input to the device (or leave a shape on the host); return its host side."""
        array = np.ascontiguousarray(given)
        self._messages.errors.clear()
        if not self._context.set_input_shape(name, given.shape) or self._messages.errors:
            bounds = [list(dims) for dims in self._engine.get_tensor_profile_shape(name, 0)]
            message = (
                f"input {name!r}: shape {list(given.shape)} is outside of the profile: min "
                f"{bounds[0]}, max {bounds[2]}"
            )
            raise UsageError(message)
        if self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST:
            self._set_address(name, array.ctypes.data)
            return array
        self._set_address(name, int(self._buffer(name, array.nbytes)))
        if array.nbytes:
            cuda.memcpy_htod_async(self._buffers[name], array, self._stream)
        return array

    def _bind_output(self, spec: TensorSpec) -> npt.NDArray[Any]:
        shape = tuple(self._context.get_tensor_shape(spec.name))
        if any(size < 0 for size in shape):
            message = f"output {spec.name!r} has a shape that depends on values: not supported"
            raise BuildError(message)
        array = np.empty(shape, np.dtype(spec.dtype))
        self._set_address(spec.name, int(self._buffer(spec.name, array.nbytes)))
        return array

    def _set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise BuildError(self._refusal(f"took no address for {name!r}"))

    def _buffer(self, name: str, size: int) -> Any:  # noqa: ANN401  untyped bindings
        """Return device memory for a tensor, kept between calls and replaced when too small."""
        if name not in self._buffers or self._sizes[name] < size:
            self._buffers[name] = cuda.mem_alloc(max(size, 1))
            self._sizes[name] = size
        return self._buffers[name]
