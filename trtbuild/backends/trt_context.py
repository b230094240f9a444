"""One execution context with its stream, buffers and graphs: serves one call at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trtbuild.backends import cuda_device
from trtbuild.backends.buffers import Buffers
from trtbuild.backends.device_arrays import count_bytes, on_host
from trtbuild.backends.graph_cache import GraphCache
from trtbuild.backends.pool import NoRoomError
from trtbuild.backends.profile_choice import choose
from trtbuild.backends.trt_call import Call, Copy, Graph, Shapes, bytes_of
from trtbuild.errors import BuildError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from trtbuild.backends.cuda_device import Device
    from trtbuild.backends.graph_cache import Refusals
    from trtbuild.backends.metrics import Metrics
    from trtbuild.backends.profile_choice import Sizes
    from trtbuild.backends.trt_call import Signature
    from trtbuild.backends.trt_engine import Engine
    from trtbuild.engine import TensorSpec

_GRAPHS = 8
"""Graphs of one context. Each is an execution context of its own: nothing may be changed in
the one that was captured while its graph lives (TensorRT developer guide, "CUDA Graphs"). They
share scratch memory, since only one of them runs at a time."""

_WARM_AFTER = 2
_REMEMBERED = 64
_MIN_SCRATCH_BYTES = 256


class Context:
    """Runs calls one after the other; the device must be current in the calling thread."""

    def __init__(
        self,
        engine: Engine,
        device: Device,
        metrics: Metrics,
        refusals: Refusals | None,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._device = device
        with device.lock:
            device.require("an execution context", engine.scratch_bytes)
            self._scratch = device.allocate(max(engine.scratch_bytes, _MIN_SCRATCH_BYTES))
        self.stream = cuda_device.Stream()
        self._memory: Buffers[Any] = Buffers(device.allocate, device.free)
        self._pinned: Buffers[npt.NDArray[np.uint8]] = Buffers(device.pin, device.unpin)
        self._context: Any = None
        self._graphs: GraphCache[Graph] | None = None
        if refusals is not None and engine.repeatable:
            self._graphs = GraphCache(_GRAPHS, _WARM_AFTER, refusals, self._drop)
        self._bound: tuple[object, ...] = ()
        self._shapes: dict[Signature, Shapes] = {}
        self._calls: dict[Signature, Call] = {}
        self._placed: dict[tuple[object, ...], Call] = {}
        self._late: dict[str, Sizes] = {}
        self._allocate_late: Callable[[str, int], int] = self._late_buffer
        self._allocators: dict[str, Any] = {}
        self._pending = False
        self._moved = 0
        try:
            self._context = engine.new_context(int(self._scratch))
        except BaseException:
            self.close()
            raise

    @property
    def memory_bytes(self) -> int:
        """Device memory that the context holds, weights and graphs not counted."""
        return self._engine.scratch_bytes + self._memory.total_bytes

    def close(self) -> None:
        """Free everything, when what is enqueued is done."""
        self.stream.synchronize()
        if self._graphs is not None:
            self._graphs.clear()
        self._context = None
        self._memory.close()
        self._pinned.close()
        self._device.free(self._scratch)
        self.stream.close()

    def run(
        self, signature: Signature, inputs: Mapping[str, npt.NDArray[Any]]
    ) -> tuple[dict[str, npt.NDArray[Any]], int, int]:
        """Return the outputs on the host, and the bytes copied to and from the device."""
        self._settle()
        shapes = self.shapes(signature, inputs)
        self._follow_buffers()
        call = self._calls.get(signature)
        if call is None:
            call = self.call(shapes, {})
            self._calls[signature] = call
        self.stage(call, inputs)
        self.execute(call)
        late = [self._late_copy(spec) for spec in shapes.late]
        for copy in late:
            if copy.host.nbytes:
                self.stream.to_host(copy.host, copy.device)
        self.settle()
        found = {c.name: c.host for c in (*call.copies_out, *call.on_host, *late)}
        late_results = [(spec, self._late[spec.name]) for spec in shapes.late]
        outputs = {
            spec.name: on_host(found[spec.name].copy(), spec.dtype, sizes)
            for spec, sizes in (*shapes.results, *late_results)
        }
        received = sum(array.nbytes for array in outputs.values())
        return outputs, sum(copy.host.nbytes for copy in call.copies_in), received

    def known(self, signature: Signature) -> Shapes | None:
        """Return what :meth:`shapes` has returned for ``signature`` before, if it has."""
        return self._shapes.get(signature)

    @property
    def anywhere(self) -> int:
        """An address for tensors without elements, which may lie nowhere."""
        return int(self._scratch)

    def placed(self, shapes: Shapes, elsewhere: Mapping[str, int]) -> Call | None:
        """Return what :meth:`place` has returned for these addresses, if it has."""
        self._follow_buffers()
        return self._placed.get((shapes.signature, *elsewhere.values()))

    def place(self, shapes: Shapes, elsewhere: Mapping[str, int]) -> Call:
        """Return the :meth:`call` of these addresses, kept for :meth:`placed`."""
        call = self.call(shapes, elsewhere)
        if len(self._placed) >= _REMEMBERED:
            self._placed.clear()
        self._placed[(shapes.signature, *elsewhere.values())] = call
        return call

    def shapes(self, signature: Signature, inputs: Mapping[str, npt.NDArray[Any]]) -> Shapes:
        """Return profile and output shapes of a call; ``inputs`` holds at least the shapes.

        Of an input on the device only ``shape`` is read.

        Raises:
            UsageError: no profile holds the inputs, or their shapes do not go together.
        """
        if signature in self._shapes:
            return self._shapes[signature]
        if len(self._shapes) >= _REMEMBERED:
            self._shapes.clear()
            self._calls.clear()
            self._placed.clear()
        engine = self._engine
        sizes = {
            spec.name: tuple(int(v) for v in inputs[spec.name].ravel())
            if spec.name in engine.host
            else inputs[spec.name].shape
            for spec in engine.inputs
        }
        given = tuple((spec.name, inputs[spec.name].shape) for spec in engine.inputs)
        shapes = Shapes(signature, choose(engine.profiles, sizes), given, (), ())
        self._bound = ()
        self._set_shapes(self._context, shapes)
        self._settle()
        for name in engine.host & sizes.keys():
            address = self._host_buffer(name, inputs[name].nbytes)
            np.copyto(address, bytes_of(inputs[name]))
            self._set_address(self._context, name, address.ctypes.data)
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            raise UsageError(self._misfit(given)) from error
        if missing or engine.logged_errors():
            raise UsageError(self._misfit(given))
        results = [
            (spec, tuple(int(n) for n in self._context.get_tensor_shape(spec.name)))
            for spec in engine.outputs
        ]
        shapes = shapes._replace(
            results=tuple((spec, dims) for spec, dims in results if min(dims, default=0) >= 0),
            late=tuple(spec for spec, dims in results if min(dims, default=0) < 0),
        )
        self._shapes[signature] = shapes
        return shapes

    def call(self, shapes: Shapes, elsewhere: Mapping[str, int]) -> Call:
        """Return a call whose tensors lie in the context's buffers, or at ``elsewhere``."""
        specs = {spec.name: spec for spec in self._engine.inputs}
        sides = (
            [(specs[name], sizes) for name, sizes in shapes.inputs],
            list(shapes.results),
        )
        host: list[Copy] = []
        addresses: list[tuple[str, int]] = []
        copies: tuple[list[Copy], list[Copy]] = ([], [])
        for side, side_copies in zip(sides, copies, strict=True):
            for spec, sizes in side:
                address = elsewhere.get(spec.name)
                if address is None:
                    copy = self._buffers(spec, sizes)
                    where = copy.host.ctypes.data if copy.device is None else int(copy.device)
                    addresses.append((spec.name, where))
                    (host if copy.device is None else side_copies).append(copy)
                else:
                    addresses.append((spec.name, address))
        self._follow_buffers()
        return Call(
            key=(shapes.signature, tuple(addresses)),
            shapes=shapes,
            addresses=tuple(addresses),
            copies_in=tuple(copies[0]),
            copies_out=tuple(copies[1]),
            on_host=tuple(host),
        )

    def stage(self, call: Call, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write the inputs that lie on the host to pinned memory, once it is free."""
        self._settle()
        for copy in call.copies_in:
            np.copyto(copy.host, bytes_of(inputs[copy.name]))
        for copy in call.on_host:
            if copy.name in inputs:
                np.copyto(copy.host, bytes_of(inputs[copy.name]))

    def execute(self, call: Call) -> None:
        """Enqueue a call with its copies, by its graph where it has one.

        Raises:
            BuildError: TensorRT refuses to run it.
        """
        self._pending = True
        if self._graphs is not None and not call.on_host and not call.shapes.late:
            graph = self._graphs.find(call.key)
            if graph is not None:
                self.stream.launch(graph.executable)
                self._metrics.add("graph_launches")
                return
            if self._graphs.wants(call.key) and self._capture(self._graphs, call):
                return
        if self._bound != call.key:
            self._bound = ()
            self._bind(self._context, call)
            self._bound = call.key
        self._enqueue(self._context, call)

    def execute_late(
        self, call: Call, allocate: Callable[[str, int], int]
    ) -> Mapping[str, Sizes]:
        """Execute with late outputs where ``allocate`` places them; return their shapes."""
        self._allocate_late = allocate
        try:
            self.execute(call)
        finally:
            self._allocate_late = self._late_buffer
        return self._late

    def settle(self) -> None:
        """Wait for everything that is enqueued."""
        self.stream.synchronize()
        self._pending = False

    def _settle(self) -> None:
        if self._pending:
            self.settle()

    def _bind(self, context: Any, call: Call) -> None:  # noqa: ANN401  untyped bindings
        self._engine.forget()
        self._set_shapes(context, call.shapes)
        for name, address in call.addresses:
            self._set_address(context, name, address)
        for spec in call.shapes.late:
            if spec.name not in self._allocators:
                self._allocators[spec.name] = self._allocator(spec.name)
            context.set_output_allocator(spec.name, self._allocators[spec.name])

    def _set_shapes(self, context: Any, shapes: Shapes) -> None:  # noqa: ANN401  untyped bindings
        self._engine.forget()
        self._choose_profile(context, shapes.profile)
        for name, sizes in shapes.inputs:
            if not context.set_input_shape(name, sizes):
                raise UsageError(self._misfit(shapes.inputs))

    def _choose_profile(self, context: Any, chosen: int) -> None:  # noqa: ANN401  untyped bindings
        """Let ``context`` use a profile.

        Raises:
            NoRoomError: it is another context's, as in an engine of 8.6 that shares none. The
                binding raises where C++ returns false.
        """
        if context.active_optimization_profile == chosen:
            return
        refused = f"gave no context for profile {chosen}"
        try:
            taken = context.set_optimization_profile_async(chosen, self.stream.handle)
        except RuntimeError as error:
            raise NoRoomError(self._engine.refusal(refused)) from error
        if not taken:
            raise NoRoomError(self._engine.refusal(refused))

    def _set_address(self, context: Any, name: str, address: int) -> None:  # noqa: ANN401  untyped bindings
        if not context.set_tensor_address(name, address):
            raise BuildError(self._engine.refusal(f"took no address for {name!r}"))

    def _enqueue(self, context: Any, call: Call) -> None:  # noqa: ANN401  untyped bindings
        for copy in call.copies_in:
            if copy.host.nbytes:
                self.stream.to_device(copy.device, copy.host)
        if not context.execute_async_v3(self.stream.handle):
            raise BuildError(self._engine.refusal("failed to run the engine"))
        for copy in call.copies_out:
            if copy.host.nbytes:
                self.stream.to_host(copy.host, copy.device)

    def _capture(self, graphs: GraphCache[Graph], call: Call) -> bool:
        """Run a call in a new context and capture it; return whether it did run.

        The run before the capture lets TensorRT do what it puts off to the first one.
        """
        ran = False
        try:
            context = self._graph_context()
            self._bind(context, call)
            self._enqueue(context, call)
            ran = True
            self._engine.check_capture(context, self.stream.handle)
            executable = self.stream.capture(lambda: self._enqueue(context, call))
        except (*cuda_device.FAILURES, BuildError, NoRoomError) as error:
            self.stream.synchronize()  # what is enqueued still uses the context, which goes now
            graphs.refuse(call.key, str(error))
            self._metrics.add("graph_fallbacks")
            return ran
        graphs.keep(call.key, Graph(executable, context))
        self._metrics.add("graph_captures")
        return True

    def _graph_context(self) -> Any:  # noqa: ANN401  untyped bindings
        """Return a context for a graph, unless it took a profile for good that the slot needs.

        Raises:
            NoRoomError: it would (8.6, profiles not shared), or there is no memory.
        """
        context = self._engine.new_context(int(self._scratch))
        if context.active_optimization_profile < 0:
            raise NoRoomError(self._engine.refusal("shares no profile between contexts"))
        return context

    def _drop(self, graph: Graph) -> None:
        self.stream.synchronize()
        self.stream.drop(graph.executable)

    def _follow_buffers(self) -> None:
        """Where buffers have moved, no graph and no prepared call may use the old ones."""
        moved = self._memory.moved + self._pinned.moved
        if moved != self._moved:
            self._moved = moved
            self._calls.clear()
            self._placed.clear()
            self._bound = ()
            if self._graphs is not None:
                self._graphs.clear()

    def _buffers(self, spec: TensorSpec, sizes: Sizes) -> Copy:
        size = count_bytes(sizes, spec.dtype)
        host = self._host_buffer(spec.name, size)
        if spec.name in self._engine.host:
            return Copy(spec.name, None, host)
        return Copy(spec.name, self._memory.get(spec.name, size), host)

    def _host_buffer(self, name: str, size: int) -> npt.NDArray[np.uint8]:
        return self._pinned.get(name, size)[:size]

    def _allocator(self, name: str) -> Any:  # noqa: ANN401  untyped bindings
        def allocate(size: int) -> int:
            try:
                return self._allocate_late(name, size)
            except NoRoomError:
                return 0  # TensorRT then fails the call; nothing may be raised through it

        def done(shape: Sizes) -> None:
            self._late[name] = shape

        return self._engine.allocator(allocate, done)

    def _late_buffer(self, name: str, size: int) -> int:
        return int(self._memory.get(name, size))

    def _late_copy(self, spec: TensorSpec) -> Copy:
        size = count_bytes(self._late[spec.name], spec.dtype)
        return Copy(
            spec.name, self._memory.get(spec.name, size), self._host_buffer(spec.name, size)
        )

    def _misfit(self, given: tuple[tuple[str, Sizes], ...]) -> str:
        shapes = ", ".join(f"{name!r} {list(sizes)}" for name, sizes in given)
        return self._engine.refusal(f"takes no inputs of shapes {shapes} together")
