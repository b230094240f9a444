"""One call of a TensorRT engine whose tensors are arrays of the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trtbuild.backends import cuda_device, device_arrays, feeds
from trtbuild.backends.device_arrays import DeviceArray
from trtbuild.backends.trt_context import with_values
from trtbuild.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from trtbuild.backends.cuda_device import Device
    from trtbuild.backends.device_arrays import Taken
    from trtbuild.backends.trt_context import Call, Context, Shapes
    from trtbuild.backends.trt_engine import Engine
    from trtbuild.engine import TensorSpec

_NO_SYNC = -1


class DeviceCall:
    """Inputs and outputs as a caller gave them, of which NumPy inputs are copied.

    Raises:
        UsageError: one is missing or unknown, or has another type or shape.
    """

    def __init__(
        self,
        engine: Engine,
        device: Device,
        inputs: Mapping[str, object],
        outputs: Mapping[str, object],
    ) -> None:
        _check_names("inputs", engine.inputs, inputs, complete=True)
        _check_names("outputs", engine.outputs, outputs, complete=False)
        self._engine = engine
        self._device = device
        self._inputs = inputs
        self._outputs = outputs
        self._access = _Access(device)
        self._arrays = {n: a for n, a in inputs.items() if isinstance(a, np.ndarray)}
        specs = tuple(spec for spec in engine.inputs if spec.name in self._arrays)
        feeds.check(specs, self._arrays)
        elsewhere = sorted(engine.host & inputs.keys() - self._arrays.keys())
        if elsewhere:
            message = f"inputs {elsewhere} are read on the host: give NumPy arrays"
            raise UsageError(message)

    def run(self, context: Context, stream: int | None) -> tuple[dict[str, Any], int]:
        """Run in ``context``; return the outputs, and how many bytes were copied.

        Ordered in ``stream`` of the caller, or finished where there is none.
        """
        if stream is not None:
            context.stream.wait_for(stream)
        inputs, given = (
            {s.name: self._take(s, a[s.name], context, stream) for s in specs if s.name in a}
            for specs, a in (
                (self._engine.inputs, _without(self._inputs, self._arrays)),
                (self._engine.outputs, self._outputs),
            )
        )
        witnesses = self._arrays | {name: _witness(taken) for name, taken in inputs.items()}
        ordered = [witnesses[spec.name] for spec in self._engine.inputs]
        kinds = tuple([(array.shape, array.dtype) for array in ordered])
        shapes = context.shapes(with_values(kinds, witnesses, self._engine), witnesses)
        made = self._make(shapes, given, stream)
        addresses = {name: taken.address for name, taken in (inputs | given).items()}
        addresses |= {name: array.address for name, array in made.items()}
        call = context.call(shapes, addresses)
        if self._arrays:
            context.stage(call, self._arrays)
        late = self._execute(context, call, stream)
        found: dict[str, Any] = dict(self._outputs) | made | late
        for copy in call.on_host:
            found.setdefault(copy.name, copy.host.copy())
        sent = sum(copy.host.nbytes for copy in call.copies_in)
        return {spec.name: found[spec.name] for spec in self._engine.outputs}, sent

    def _execute(
        self, context: Context, call: Call, stream: int | None
    ) -> dict[str, DeviceArray]:
        """Run the call; return the outputs whose shapes it decided."""
        memories: dict[str, Any] = {}

        def allocate(name: str, size: int) -> int:
            memories[name] = self._device.allocate(max(size, 1))
            return int(memories[name])

        sizes = context.execute_late(call, allocate)
        if stream is None or call.on_host:
            context.settle()
        if stream is not None:
            context.stream.hold_back(stream)
        return {
            spec.name: DeviceArray(
                (int(memories[spec.name]), sizes[spec.name], spec.dtype),
                self._access,
                stream,
                memories[spec.name],
            )
            for spec in call.shapes.late
        }

    def _take(
        self, spec: TensorSpec, given: object, context: Context, stream: int | None
    ) -> Taken:
        ours = context.stream
        sync = ours.handle if stream is None else _NO_SYNC
        taken = device_arrays.take(spec.name, given, self._device.index, sync, ours.wait_for)
        fits = len(taken.shape) == len(spec.shape) and all(
            size in {"?", got} for size, got in zip(spec.shape, taken.shape, strict=True)
        )
        if taken.dtype != spec.dtype or not fits:
            message = (
                f"{spec.name!r}: expected {spec.dtype}{list(spec.shape)}, got "
                f"{taken.dtype or 'an unknown type'}{list(taken.shape)}"
            )
            raise UsageError(message)
        return taken

    def _make(
        self, shapes: Shapes, given: Mapping[str, Taken], stream: int | None
    ) -> dict[str, DeviceArray]:
        """Return arrays for the outputs that the caller gave none for."""
        late = [spec.name for spec in shapes.late if spec.name in given]
        if late:
            message = f"outputs {late} have shapes that depend on values: leave them out"
            raise UsageError(message)
        made = {}
        for spec, sizes in shapes.results:
            if spec.name in given:
                if given[spec.name].shape != sizes:
                    message = (
                        f"output {spec.name!r}: expected an array of shape {list(sizes)}, got "
                        f"{list(given[spec.name].shape)}"
                    )
                    raise UsageError(message)
            elif spec.name not in self._engine.host:
                size = device_arrays.count_bytes(sizes, spec.dtype)
                memory = self._device.allocate(max(size, 1))
                layout = (int(memory), sizes, spec.dtype)
                made[spec.name] = DeviceArray(layout, self._access, stream, memory)
        return made


class _Access:
    """A device for arrays that outlive their call, used from any thread."""

    def __init__(self, device: Device) -> None:
        self._device = device

    @property
    def index(self) -> int:
        return self._device.index

    def order(self, first: int, then: int) -> None:
        with self._device.active():
            cuda_device.order(first, then)

    def copy_to_host(self, host: npt.NDArray[Any], address: int, stream: int | None) -> None:
        with self._device.active():
            if stream is not None:
                cuda_device.wait(stream)
            cuda_device.copy_to_host(host, address)

    def release(self, memory: object) -> None:
        with self._device.active():
            self._device.free(memory)


def _check_names(
    what: str, specs: tuple[TensorSpec, ...], given: Mapping[str, object], *, complete: bool
) -> None:
    names = [spec.name for spec in specs]
    if any(name not in names for name in given) or (complete and len(given) != len(names)):
        message = f"expected the {what} {names}, got {list(given)}"
        raise UsageError(message)


def _without(given: Mapping[str, object], names: Mapping[str, object]) -> dict[str, object]:
    return {name: array for name, array in given.items() if name not in names}


def _witness(taken: Taken) -> npt.NDArray[Any]:
    """Return an array of a shape that holds one element, for what reads only the shape."""
    dtype = "uint16" if taken.dtype == "bfloat16" else taken.dtype
    return np.broadcast_to(np.empty((), dtype), taken.shape)
