"""Times the layers of a TensorRT engine, of either flavor, on a GPU of this machine."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pycuda.driver as cuda

from trtbuild.backends.trt_api import api
from trtbuild.backends.trt_profile import layer_ms
from trtbuild.errors import BuildError, TrustError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt


def engine_layer_ms(
    engine: bytes,
    device: int,
    backend: str,
    inputs: Mapping[str, npt.NDArray[Any]],
    calls: int,
) -> dict[str, float]:
    """Return the time of each layer by the engine's own names, in milliseconds per call.

    ``engine`` was verified by the caller; ``device`` is the GPU's index in the driver's order.

    Raises:
        TrustError: TensorRT refuses the bytes.
        BuildError: the engine fails, or has outputs whose shape depends on values.
    """
    cuda.init()
    with _current(device):
        return _Timed(engine, backend).times(inputs, calls)


@contextlib.contextmanager
def _current(device: int) -> Iterator[None]:
    context = cuda.Device(device).retain_primary_context()
    context.push()
    try:
        yield
    finally:
        context.pop()


class _Timed:
    def __init__(self, engine: bytes, backend: str) -> None:
        self._api = api(backend)
        self._trt = self._api.trt
        self._stream = cuda.Stream()
        self._runtime = self._trt.Runtime(self._api.logger)  # must outlive its engine
        self._runtime.engine_host_code_allowed = False
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise TrustError(self._refusal("refuses the engine"))
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BuildError(self._refusal("gave no execution context"))

    def times(self, inputs: Mapping[str, npt.NDArray[Any]], calls: int) -> dict[str, float]:
        kept = [self._input(name, np.ascontiguousarray(inputs[name])) for name in inputs]
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        kept += [self._output(name) for name in names if name not in inputs]
        found = layer_ms(self._trt, self._context, self._execute, calls)
        del kept  # buffers must live until the last call is done
        return found

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise BuildError(self._refusal("failed to run the engine"))
        self._stream.synchronize()

    def _input(self, name: str, array: npt.NDArray[Any]) -> object:
        if not self._context.set_input_shape(name, array.shape):
            raise BuildError(
                self._refusal(f"refuses the shape {list(array.shape)} of {name!r}")
            )
        if self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST:
            self._context.set_tensor_address(name, array.ctypes.data)
            return array
        memory = cuda.mem_alloc(max(array.nbytes, 1))
        cuda.memcpy_htod(memory, array)
        self._context.set_tensor_address(name, int(memory))
        return memory

    def _output(self, name: str) -> object:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            message = f"output {name!r} has a shape that depends on values: not timed by layer"
            raise BuildError(message)
        item_bytes = max(1, self._engine.get_tensor_bytes_per_component(name))
        memory = cuda.mem_alloc(max(1, item_bytes * int(np.prod(shape, dtype=np.int64))))
        self._context.set_tensor_address(name, int(memory))
        return memory

    def _refusal(self, what: str) -> str:
        detail = "; ".join(dict.fromkeys(self._api.messages.errors))
        return f"{self._api.title} {what}{': ' + detail if detail else ''}"
