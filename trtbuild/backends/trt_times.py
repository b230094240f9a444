"""Times the layers of a TensorRT engine, of either flavor, on a GPU of this machine.

Nothing here is imported on a machine without a driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trtbuild.backends import cuda_device
from trtbuild.backends.device_arrays import count_bytes
from trtbuild.backends.trt_engine import Engine
from trtbuild.backends.trt_profile import layer_ms
from trtbuild.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from trtbuild.backends.cuda_device import Device
    from trtbuild.backends.session import Plan, SessionOptions
    from trtbuild.backends.trt_api import Api
    from trtbuild.engine import TensorSpec

_CALLS = 20
_LEAST_BYTES = 256


def engine_layer_ms(
    plan: Plan,
    index: int,
    found: Api,
    options: SessionOptions,
    inputs: Mapping[str, npt.NDArray[Any]],
) -> dict[str, float]:
    """Return the time of each layer by the engine's own names, in milliseconds per call.

    ``plan`` was verified by the caller, who has loaded its plug-ins; ``index`` is the GPU's in
    the driver's order.

    Raises:
        TrustError: TensorRT refuses the bytes.
        MissingBackendError: the GPU has too little free memory.
        BuildError: the engine fails, or has outputs whose shape depends on values.
    """
    device = cuda_device.device(index)
    with device.active():
        engine = Engine(plan, found, options, device.free_bytes)
        timed = _Timed(engine, found, device)
        try:
            return timed.times(inputs)
        except cuda_device.FAILURES as error:
            message = f"{engine.title}: the GPU failed while the engine ran: {error}"
            raise BuildError(message) from error
        finally:
            timed.close()
            engine.close()


class _Timed:
    """One context of an engine, with memory for one call; the device is current."""

    def __init__(self, engine: Engine, found: Api, device: Device) -> None:
        self._trt = found.trt
        self._engine = engine
        self._device = device
        self._stream = cuda_device.Stream()
        self._taken: list[Any] = []
        self._kept: list[npt.NDArray[Any]] = []
        self._context: Any = None

    def times(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
        scratch = self._take(self._engine.scratch_bytes)
        self._context = self._engine.new_context(int(scratch))
        for name, array in inputs.items():
            self._give(name, np.ascontiguousarray(array))
        for spec in self._engine.outputs:
            self._expect(spec)
        self._stream.synchronize()
        return layer_ms(self._trt, self._context, self._execute, _CALLS)

    def close(self) -> None:
        """Free the context, then what it worked in."""
        self._stream.synchronize()
        self._context = None
        for memory in self._taken:
            self._device.free(memory)
        self._stream.close()

    def _take(self, size: int) -> Any:  # noqa: ANN401  untyped bindings
        memory = self._device.allocate(max(size, _LEAST_BYTES))
        self._taken.append(memory)
        return memory

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise BuildError(self._engine.refusal("failed to run the engine"))
        self._stream.synchronize()

    def _give(self, name: str, array: npt.NDArray[Any]) -> None:
        if not self._context.set_input_shape(name, array.shape):
            raise BuildError(
                self._engine.refusal(f"refuses the shape {list(array.shape)} of {name!r}")
            )
        self._kept.append(array)
        address = array.ctypes.data
        if name not in self._engine.host:
            memory = self._take(array.nbytes)
            if array.nbytes:
                self._stream.to_device(memory, array)
            address = int(memory)
        self._context.set_tensor_address(name, address)

    def _expect(self, spec: TensorSpec) -> None:
        shape = tuple(self._context.get_tensor_shape(spec.name))
        if any(size < 0 for size in shape):
            message = (
                f"output {spec.name!r} has a shape that depends on values: not timed by layer"
            )
            raise BuildError(message)
        size = count_bytes(shape, spec.dtype)
        if spec.name in self._engine.host:
            array = np.zeros(max(size, 1), np.uint8)
            self._kept.append(array)
            self._context.set_tensor_address(spec.name, array.ctypes.data)
            return
        self._context.set_tensor_address(spec.name, int(self._take(size)))
