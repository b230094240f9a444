"""One call of a TensorRT engine whose tensors are arrays of the GPU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from trtbuild.backends import cuda_device, device_arrays, feeds
from trtbuild.backends.device_arrays import DeviceArray
from trtbuild.backends.trt_call import with_values
from trtbuild.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from trtbuild.backends.cuda_device import Device
    from trtbuild.backends.device_arrays import Taken
    from trtbuild.backends.trt_call import Call, Shapes
    from trtbuild.backends.trt_context import Context
    from trtbuild.backends.trt_engine import Engine
    from trtbuild.engine import TensorSpec

_NO_SYNC = -1
_ALIGNMENT = 256
"""Of the addresses of tensors (``IExecutionContext::setTensorAddress``, NvInferRuntime.h)."""


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
        self._arrays = {n: a for n, a in inputs.items() if isinstance(a, np.ndarray)}
        if self._arrays:
            specs = tuple(spec for spec in engine.inputs if spec.name in self._arrays)
            feeds.check(specs, self._arrays)
        on_device = engine.host and sorted(engine.host & inputs.keys() - self._arrays.keys())
        if on_device:
            message = f"inputs {on_device} are read on the host: give NumPy arrays"
            raise UsageError(message)

    def run(self, context: Context, stream: int | None) -> tuple[dict[str, Any], int]:
        """Run in ``context``; return the outputs, and how many bytes were copied.

        Ordered in ``stream`` of the caller, or finished where there is none.
        """
        if stream is not None:
            context.stream.wait_for(stream)
        inputs = self._taken(self._engine.inputs, self._inputs, context, stream)
        given = self._taken(self._engine.outputs, self._outputs, context, stream)
        shapes = self._shapes(context, inputs)
        made = self._make(shapes, given, stream)
        addresses = {name: taken.address or context.anywhere for name, taken in inputs.items()}
        for name, taken in given.items():
            addresses[name] = taken.address or context.anywhere
        for name, array in made.items():
            addresses[name] = array.address
        call = context.placed(shapes, addresses)
        if call is None:  # an array that lies where one lay before needs no second look
            self._check_places((*inputs.items(), *given.items()))
            call = context.place(shapes, addresses)
        if self._arrays:
            context.stage(call, self._arrays)
        late = self._execute(context, call, stream)
        if not (made or late or call.on_host):
            return dict(self._outputs), 0 if not call.copies_in else _bytes_in(call)
        found: dict[str, Any] = dict(self._outputs) | made | late
        for copy in call.on_host:
            found.setdefault(copy.name, copy.host.copy())
        return {spec.name: found[spec.name] for spec in self._engine.outputs}, _bytes_in(call)

    def _shapes(self, context: Context, inputs: Mapping[str, Taken]) -> Shapes:
        kinds: list[object] = []
        for spec in self._engine.inputs:
            taken = inputs.get(spec.name)
            if taken is None:
                array = self._arrays[spec.name]
                kinds.append((array.shape, array.dtype))
            else:
                kinds.append((taken.shape, taken.dtype))
        signature = with_values(tuple(kinds), self._arrays, self._engine)
        known = context.known(signature)
        if known is not None:
            return known
        for spec in self._engine.inputs:
            if spec.name in inputs:
                _check_fit(spec, inputs[spec.name])
        witnesses = self._arrays | {name: _witness(taken) for name, taken in inputs.items()}
        return context.shapes(signature, witnesses)

    def _execute(
        self, context: Context, call: Call, stream: int | None
    ) -> dict[str, DeviceArray]:
        """Run the call; return the outputs whose shapes it decided."""
        if not call.shapes.late:
            context.execute(call)
            self._order(context, call, stream)
            return {}
        memories: dict[str, Any] = {}

        def allocate(name: str, size: int) -> int:
            memories[name] = self._device.allocate(max(size, 1))
            return int(memories[name])

        sizes = context.execute_late(call, allocate)
        self._order(context, call, stream)
        return {
            spec.name: self._array(
                (int(memories[spec.name]), sizes[spec.name], spec.dtype),
                stream,
                memories[spec.name],
            )
            for spec in call.shapes.late
        }

    @staticmethod
    def _order(context: Context, call: Call, stream: int | None) -> None:
        """Wait for the call, or let the caller's stream do so."""
        if stream is None or call.on_host:
            context.settle()
        if stream is not None:
            context.stream.hold_back(stream)

    def _taken(
        self,
        specs: tuple[TensorSpec, ...],
        arrays: Mapping[str, object],
        context: Context,
        stream: int | None,
    ) -> dict[str, Taken]:
        """Return where the arrays on the GPU lie, in the order of ``specs``."""
        ours = context.stream
        sync = ours.handle if stream is None else _NO_SYNC
        index = self._device.index
        found = {}
        for spec in specs:
            name = spec.name
            if name in arrays and name not in self._arrays:
                taken = device_arrays.take(name, arrays[name], index, sync, ours.wait_for)
                if taken.address % _ALIGNMENT:
                    message = (
                        f"{name!r} lies at an address that is no multiple of {_ALIGNMENT}, as "
                        "TensorRT needs it: give a copy of its own (.clone(), .copy())"
                    )
                    raise UsageError(message)
                found[name] = taken
        return found

    def _check_places(self, arrays: Iterable[tuple[str, Taken]]) -> None:
        """Refuse memory of another GPU, or none, where only its address was given."""
        index = self._device.index
        for name, taken in arrays:
            empty = not (taken.address or math.prod(taken.shape))
            if taken.placed or empty:
                continue
            if cuda_device.device_of(taken.address) != index:
                raise UsageError(device_arrays.elsewhere(name, taken.keep, index))

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
            taken = given.get(spec.name)
            if taken is not None:
                if taken.shape != sizes or taken.dtype != spec.dtype or taken.read_only:
                    raise UsageError(_unwritable(spec, sizes, taken))
            elif spec.name not in self._engine.host:
                size = device_arrays.count_bytes(sizes, spec.dtype)
                memory = self._device.allocate(max(size, 1))
                layout = (int(memory), sizes, spec.dtype)
                made[spec.name] = self._array(layout, stream, memory)
        return made

    def _array(
        self, layout: tuple[int, tuple[int, ...], str], stream: int | None, memory: object
    ) -> DeviceArray:
        return DeviceArray(layout, _Access(self._device), stream, memory)


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
    if (complete and len(given) != len(names)) or not all(name in names for name in given):
        message = f"expected the {what} {names}, got {list(given)}"
        raise UsageError(message)


def _check_fit(spec: TensorSpec, taken: Taken) -> None:
    fits = len(taken.shape) == len(spec.shape) and all(
        isinstance(size, str) or size == got
        for size, got in zip(spec.shape, taken.shape, strict=True)
    )
    if taken.dtype != spec.dtype or not fits:
        message = (
            f"{spec.name!r}: expected {spec.dtype}{list(spec.shape)}, got "
            f"{taken.dtype or 'an unknown type'}{list(taken.shape)}"
        )
        raise UsageError(message)


def _unwritable(spec: TensorSpec, sizes: tuple[int, ...], taken: Taken) -> str:
    if taken.read_only:
        return f"output {spec.name!r}: the array may only be read: give one of your own"
    return (
        f"output {spec.name!r}: expected an array {spec.dtype}{list(sizes)}, got "
        f"{taken.dtype or 'an unknown type'}{list(taken.shape)}"
    )


def _bytes_in(call: Call) -> int:
    return sum(copy.host.nbytes for copy in call.copies_in)


def _witness(taken: Taken) -> npt.NDArray[Any]:
    """Return an array of a shape that holds one element, for what reads only the shape."""
    dtype = "uint16" if taken.dtype == "bfloat16" else taken.dtype
    return np.broadcast_to(np.empty((), dtype), taken.shape)
