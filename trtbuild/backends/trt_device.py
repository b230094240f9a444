"""A TensorRT engine on a GPU, shared by threads: a pool of execution contexts.

Nothing here is imported on a machine without a driver.
"""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from trtbuild.backends import cuda_device, feeds
from trtbuild.backends import metrics as figures
from trtbuild.backends.graph_cache import Refusals
from trtbuild.backends.pool import NoRoomError, Pool
from trtbuild.backends.trt_call import with_values
from trtbuild.backends.trt_context import Context
from trtbuild.backends.trt_device_call import DeviceCall
from trtbuild.backends.trt_engine import Engine
from trtbuild.errors import BuildError, TrtbuildError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    import numpy.typing as npt
    from typing_extensions import Self

    from trtbuild.backends.cuda_device import Device
    from trtbuild.backends.session import LoadedSession, Plan, SessionOptions
    from trtbuild.backends.trt_api import Api
    from trtbuild.backends.trt_call import Signature
    from trtbuild.engine import TensorSpec
    from trtbuild.trust.candidate import Admission

T = TypeVar("T")

_CONTEXTS = 2
"""Two by default: the copies of one call go on while another computes."""

_PATIENCE_S = 10.0
_KNOWN = 1024


def open_engine(
    plan: Plan, index: int, found: Api, options: SessionOptions, labels: Mapping[str, str]
) -> LoadedSession:
    """Return a session of the engine ``plan`` on the GPU ``index`` in the driver's order.

    Raises:
        TrustError: TensorRT refuses the bytes.
        BuildError: a tensor has a type or layout that NumPy lacks.
        MissingBackendError: the GPU has too little free memory.
    """
    device = cuda_device.device(index)
    with device.active():
        with device.lock:
            if not plan.streams_weights:  # its budget is what of them has to fit
                device.require("the engine's file", len(plan.engine) + len(plan.weights))
            engine = Engine(plan, found, options, device.free_bytes)
        return TrtSession(engine, device, options, labels)


class TrtSession:
    """One engine; at most ``contexts`` calls run at once, others wait in order."""

    admission: Admission | None = None

    def __init__(
        self,
        engine: Engine,
        device: Device,
        options: SessionOptions,
        labels: Mapping[str, str],
    ) -> None:
        self._engine = engine
        self._device = device
        self._names = tuple(spec.name for spec in engine.inputs)
        self._known: set[Signature] = set()
        contexts: list[Context] = []
        refusals = Refusals() if options.cuda_graphs else None

        def make() -> Context:
            with device.active():
                context = Context(engine, device, stats, refusals)
            contexts.append(context)
            return context

        def dispose(context: Context) -> None:
            contexts.remove(context)
            with device.active():
                context.close()

        pool = Pool(make, options.contexts or _CONTEXTS, dispose)
        stats = figures.Metrics(
            labels,
            {
                "contexts": lambda: pool.made,
                "contexts_in_use": lambda: pool.in_use,
                "contexts_limit": lambda: pool.limit,
                "device_memory_bytes": lambda: sum(c.memory_bytes for c in list(contexts)),
            },
            {
                "context_waits": lambda: pool.waits,
                "context_wait_seconds": lambda: pool.waited_s,
            },
        )
        self._pool = pool
        self._stats = stats
        # Also when the session is collected, and when the process ends.
        self._finalizer = weakref.finalize(self, _shut, pool, engine, device)
        first = pool.take()  # what the engine needs is known to be there, or load fails
        pool.give(first)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that :meth:`run` expects."""
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs that :meth:`run` returns."""
        return self._engine.outputs

    @property
    def host_tensors(self) -> frozenset[str]:
        """The inputs and outputs of :meth:`run_device` that lie on the host."""
        return self._engine.host

    @property
    def stats(self) -> figures.Metrics:
        """What the session counts."""
        return self._stats

    def metrics(self) -> str:
        """Return what the session counts as Prometheus text."""
        return figures.render([self._stats])

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs by name, on the host; bfloat16 comes back as float32.

        Raises:
            UsageError: an array is missing, unknown, or has another type or shape, or a shape
                that no profile of the engine holds.
            BuildError: the engine failed while it ran.
        """
        start = time.perf_counter()
        try:
            signature = self._signature(inputs)

            def work(context: Context) -> tuple[dict[str, npt.NDArray[Any]], int, int]:
                return context.run(signature, inputs)

            outputs, sent, received = self._serve(signature, work)
        except TrtbuildError as error:
            self._stats.error(error)
            raise
        except cuda_device.FAILURES as error:
            self._stats.error(error)
            raise BuildError(self._breakdown(error)) from error
        self._stats.call(time.perf_counter() - start, sent, received)
        return outputs

    def run_device(
        self,
        inputs: Mapping[str, object],
        outputs: Mapping[str, object] | None = None,
        stream: int | None = None,
    ) -> dict[str, Any]:
        """Return the outputs by name as arrays of the GPU, copying nothing.

        Inputs are arrays of this GPU with ``__dlpack__`` or ``__cuda_array_interface__``
        (PyTorch, CuPy, PyCUDA, Numba), or NumPy arrays, which are copied. ``outputs`` are
        arrays of the GPU to write to; where one is missing, a :class:`DeviceArray` is made.

        With ``stream``, the handle of a CUDA stream of the caller, the call is enqueued as if
        in it and returns at once: arrays may be reused in that stream. Without, the call waits
        for what the producers of the arrays have enqueued, and returns when outputs are there.

        Raises:
            UsageError: an array is missing, unknown, elsewhere, or of another type or shape.
            BuildError: the engine failed while it ran.
        """
        start = time.perf_counter()
        try:
            call = DeviceCall(self._engine, self._device, inputs, outputs or {})
            found, sent = self._serve(None, lambda context: call.run(context, stream))
        except TrtbuildError as error:
            self._stats.error(error)
            raise
        except cuda_device.FAILURES as error:
            self._stats.error(error)
            raise BuildError(self._breakdown(error)) from error
        self._stats.call(time.perf_counter() - start, sent)
        return found

    def warm_up(self, inputs: Mapping[str, npt.NDArray[Any]], runs: int) -> None:
        """Run every context ``runs`` times on ``inputs``, making those that are not there."""
        signature = self._signature(inputs)

        def prepare(context: Context) -> Signature:
            with self._device.active():
                for _ in range(runs):
                    context.run(signature, inputs)
            return signature

        try:
            self._pool.fill(prepare)
        except cuda_device.FAILURES as error:
            raise BuildError(self._breakdown(error)) from error

    def close(self) -> None:
        """Wait for the calls that run, then free everything; later calls are refused."""
        self._finalizer()

    def __enter__(self) -> Self:
        """Return the session itself."""
        return self

    def __exit__(self, *_raised: object) -> None:
        """Close the session."""
        self.close()

    def _serve(self, last: Hashable, work: Callable[[Context], T]) -> T:
        """Return what ``work`` does in a context, the one that did ``last`` if it is free.

        Where a context has no room for its buffers it is disposed of, as long as there are
        others, and another one tries: fewer callers at once are better than none.
        """
        while True:
            limit = self._pool.limit
            context = self._pool.take(last)
            kept = True
            self._device.enter()
            try:
                return work(context)
            except NoRoomError:
                kept = not self._pool.discard(context)
                if kept and self._pool.limit == limit:  # nobody has made room meanwhile
                    raise
            finally:
                self._device.leave()
                if kept:
                    self._pool.give(context, last)

    def _signature(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Signature:
        """Return what :class:`Shapes` depend on, the inputs checked unless they were before."""
        try:
            arrays = [inputs[name] for name in self._names]
            signature: Signature = tuple([(array.shape, array.dtype) for array in arrays])
            if signature in self._known and len(inputs) == len(arrays):
                return with_values(signature, inputs, self._engine)
        except (KeyError, TypeError, AttributeError):
            feeds.check(self.inputs, inputs)
            raise
        feeds.check(self.inputs, inputs)
        if len(self._known) < _KNOWN:
            self._known.add(signature)
        return with_values(signature, inputs, self._engine)

    def _breakdown(self, error: Exception) -> str:
        return (
            f"{self._engine.title}: the GPU failed while the engine ran ({error}): start the "
            "process again, and check the GPU if it comes back"
        )


def _shut(pool: Pool[Context], engine: Engine, device: Device) -> None:
    """Free everything, now or, where a call outlasts our patience, when it ends."""

    def emptied() -> None:
        with device.active():
            engine.close()

    pool.close(_PATIENCE_S, emptied)
