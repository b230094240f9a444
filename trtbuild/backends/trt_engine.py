"""A TensorRT engine, of either flavor, given to its runtime: what it says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtbuild.backends import trt_refit
from trtbuild.backends.diagnosis import MEMORY_WORDS
from trtbuild.backends.pool import NoRoomError
from trtbuild.backends.profile_choice import Bounds
from trtbuild.backends.trt_api import place_on_dla, started
from trtbuild.engine import TensorSpec
from trtbuild.errors import BuildError, MissingBackendError, TrustError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.backends.profile_choice import Sizes
    from trtbuild.backends.session import Plan, SessionOptions
    from trtbuild.backends.trt_api import Api

_CUT_BYTES = 1 << 31
_MARGIN_BYTES = 256 << 20
"""Left free beside weights and scratch memory: kernels, inputs and outputs."""


class Engine:
    """The inputs, outputs and profiles of an engine, and a maker of execution contexts.

    The runtime must outlive its engine, and the engine its contexts. ``inputs`` and
    ``outputs`` are in the engine's order. ``host`` are the tensors that TensorRT reads or
    writes on the host, shapes mostly. ``profiles`` has one entry per profile, by input.
    ``free_bytes`` tells how much memory its device has left.
    """

    def __init__(
        self,
        plan: Plan,
        found: Api,
        options: SessionOptions,
        free_bytes: Callable[[], int],
    ) -> None:
        self.title = found.title
        self._api = found
        self._trt = found.trt
        self._runtime = self._new_runtime(options)
        place_on_dla(found, self._runtime, plan.dla_core)
        self._engine = self._deserialize(plan.engine)
        if plan.weights:
            self._complete(plan.weights)
        self._set_weight_budget(options, free_bytes)
        self._kernels: Any = None
        self._config = self._runtime_config()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        reading = self._trt.TensorIOMode.INPUT
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self.inputs = tuple(self._spec(name) for name in names if modes[name] == reading)
        self.outputs = tuple(self._spec(name) for name in names if modes[name] != reading)
        on_host = self._trt.TensorLocation.HOST
        self.host = frozenset(
            name for name in names if self._engine.get_tensor_location(name) == on_host
        )
        self.profiles = tuple(
            {spec.name: self._bounds(spec.name, index) for spec in self.inputs}
            for index in range(self._engine.num_optimization_profiles)
        )
        self.scratch_bytes = self._scratch_bytes()
        self.repeatable = not any(self._is_updated(spec.name) for spec in self.outputs)

    def new_context(self, scratch: int) -> Any:  # noqa: ANN401  untyped bindings
        """Return an execution context that works in the device memory at ``scratch``.

        Contexts that share scratch memory must not run at the same time.

        Raises:
            NoRoomError: TensorRT gives none, for want of memory as far as is known.
        """
        self.forget()
        if self._config is not None:
            context = self._engine.create_execution_context(self._config)
        elif hasattr(self._trt, "ExecutionContextAllocationStrategy"):
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self._engine.create_execution_context(strategy)
        else:
            context = self._engine.create_execution_context_without_device_memory()
        if context is None:
            raise NoRoomError(self.refusal("gave no execution context"))
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(scratch, self.scratch_bytes)
        else:
            context.device_memory = scratch
        return context

    def refusal(self, what: str) -> str:
        """Return an error text about what TensorRT did, with its own words."""
        detail = "; ".join(dict.fromkeys(self._api.messages.errors))
        return (
            f"{self.title} {what}{': ' + detail if detail else ''}. Build "
            "it again with this version, for this GPU"
        )

    def forget(self) -> None:
        """Drop the errors that TensorRT has logged for this thread."""
        self._api.messages.errors.clear()

    def logged_errors(self) -> bool:
        """Return whether this thread made TensorRT log an error since :meth:`forget`."""
        return bool(self._api.messages.errors)

    def allocator(self, allocate: Any, done: Any) -> Any:  # noqa: ANN401  untyped bindings
        """Return an output allocator for one output whose shape depends on values.

        ``allocate(size)`` returns an address, ``done(shape)`` is told the shape.
        """

        class Allocator(self._trt.IOutputAllocator):  # type: ignore[misc, name-defined]  # untyped bindings
            def __init__(self) -> None:
                super().__init__()

            def reallocate_output(
                self, _name: str, _memory: int, size: int, _align: int
            ) -> int:
                return int(allocate(size))

            def reallocate_output_async(
                self, _name: str, _memory: int, size: int, _align: int, _stream: int
            ) -> int:
                return int(allocate(size))

            def notify_shape(self, _name: str, shape: Any) -> None:  # noqa: ANN401  untyped bindings
                done(tuple(shape))

        return Allocator()

    def check_capture(self, context: Any, stream: int) -> None:  # noqa: ANN401  untyped bindings
        """Refuse a capture where the flavor can tell that it will fail.

        Raises:
            BuildError: it says so.
        """
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(
            stream
        ):
            raise BuildError(self.refusal("says that it cannot be captured"))

    def close(self) -> None:
        """Free the engine, after its contexts."""
        self._config = None
        self._kernels = None
        self._engine = None
        self._runtime = None

    def _new_runtime(self, options: SessionOptions) -> Any:  # noqa: ANN401  untyped bindings
        runtime = started(self._api, lambda: self._trt.Runtime(self._api.logger))
        runtime.engine_host_code_allowed = options.allow_host_code
        if bool(runtime.engine_host_code_allowed) != options.allow_host_code:
            raise TrustError(self.refusal("did not switch off host code in engines"))
        self._forbid_files(runtime, options)
        return runtime

    def _forbid_files(self, runtime: Any, options: SessionOptions) -> None:  # noqa: ANN401  untyped bindings
        """Let TensorRT make no file of code that is in an engine, on disk never.

        A runtime that is inside of an engine is loaded from a file in memory
        (TempfileControlFlag, TensorRT 8.6 and later).
        """
        if not hasattr(runtime, "tempfile_control_flags"):
            return
        in_memory = 1 << int(self._trt.TempfileControlFlag.ALLOW_IN_MEMORY_FILES)
        wanted = in_memory if options.allow_host_code else 0
        runtime.tempfile_control_flags = wanted
        if int(runtime.tempfile_control_flags) != wanted:
            raise TrustError(self.refusal("did not switch off temporary files of code"))

    def _deserialize(self, plan: bytes) -> Any:  # noqa: ANN401  untyped bindings
        self.forget()
        loaded = self._runtime.deserialize_cuda_engine(plan)
        if loaded is None or self.logged_errors():
            said = " ".join(self._api.messages.errors)
            if any(word in said for word in (*MEMORY_WORDS, "out of memory")):
                message = (
                    f"{self.title} has no memory for the engine: {said}. Free memory of the "
                    "GPU (nvidia-smi tells who holds it) or of this machine"
                )
                raise NoRoomError(message)
            raise TrustError(self.refusal("refuses the engine"))
        return loaded

    def _complete(self, weights: bytes) -> None:
        """Give the engine the weights that it was stored without.

        Raises:
            MissingBackendError: this library cannot.
            TrustError: some are missing, so that the engine would compute with nothing there.
        """
        try:
            trt_refit.give(self._api, self._engine, trt_refit.onnx_bytes(weights))
        except trt_refit.NoRefitterError as error:
            raise MissingBackendError(f"{self.title}: {error}") from error
        except trt_refit.RefusedError as error:
            raise TrustError(
                f"{self.title} did not put the weights back into an engine that was stored "
                f"without them: {error}. Build it again, or without strip_plan"
            ) from error

    def _set_weight_budget(
        self, options: SessionOptions, free_bytes: Callable[[], int]
    ) -> None:
        """Decide, before the first context, how many of the weights stay on the device.

        Raises:
            UsageError: a budget was given for an engine that streams nothing.
            MissingBackendError: TensorRT does not take the budget.
        """
        streamable = int(getattr(self._engine, "streamable_weights_size", 0))
        if not streamable:
            if options.weight_budget_mib:
                message = (
                    "weight_budget_mib: the engine does not stream its weights: build it with "
                    "weight streaming, or leave the option out"
                )
                raise UsageError(message)
            return
        budget = options.weight_budget_mib << 20 or self._own_budget(streamable, free_bytes)
        wanted = min(budget, streamable)
        self._engine.weight_streaming_budget_v2 = wanted
        got = self._engine.weight_streaming_budget_v2
        if got != wanted:
            detail = "; ".join(dict.fromkeys(self._api.messages.errors))
            message = (
                f"{self.title} did not take a budget of {wanted} bytes for the weights on the "
                f"device, it has {got}{': ' + detail if detail else ''}: free device memory, "
                "or give another weight_budget_mib"
            )
            raise MissingBackendError(message)

    def _own_budget(self, streamable: int, free_bytes: Callable[[], int]) -> int:
        """Return TensorRT's automatic budget, or ours where its bindings cut it short.

        They return it in 32 bits (``get_weight_streaming_automatic_budget``, 10.13 to 11.4).
        """
        automatic = int(self._engine.get_weight_streaming_automatic_budget())
        if automatic >= 0 and streamable < _CUT_BYTES:
            return automatic
        self._engine.weight_streaming_budget_v2 = 0  # then scratch memory is at its largest
        return max(0, free_bytes() - self._scratch_bytes() - _MARGIN_BYTES)

    def _runtime_config(self) -> Any:  # noqa: ANN401  untyped bindings
        """Return TensorRT-RTX's: kernels that one context compiled serve all others too."""
        if not hasattr(getattr(self._trt, "IRuntimeConfig", None), "create_runtime_cache"):
            return None
        config = self._engine.create_runtime_config()
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        config.set_execution_context_allocation_strategy(strategy)
        # Nothing says that the configuration keeps its cache alive: it must outlive contexts.
        self._kernels = config.create_runtime_cache()
        config.set_runtime_cache(self._kernels)
        return config

    def _scratch_bytes(self) -> int:
        """Return what one context needs, for any profile; after the budget for weights."""
        if hasattr(self._engine, "device_memory_size_v2"):
            return int(self._engine.device_memory_size_v2)
        return int(self._engine.device_memory_size)

    def _is_updated(self, output: str) -> bool:
        """Return whether an output is an input, changed in place: no run is like another."""
        if not hasattr(self._engine, "get_aliased_input_tensor"):
            return False
        return bool(self._engine.get_aliased_input_tensor(output))

    def _bounds(self, name: str, profile: int) -> Bounds:
        found = self._values(name, profile) if name in self.host else None
        if found:
            low, tuned, high = (_sizes(values) for values in found)
            return Bounds(min=low, opt=tuned, max=high)
        shapes = self._engine.get_tensor_profile_shape(name, profile)
        low, tuned, high = (_sizes(dims) for dims in shapes)
        return Bounds(min=low, opt=tuned, max=high)

    def _values(self, name: str, profile: int) -> Any:  # noqa: ANN401  untyped bindings
        """Return the least, the tuned and the largest values of an input that is a shape."""
        if hasattr(self._engine, "get_tensor_profile_values"):
            return self._engine.get_tensor_profile_values(profile, name)
        if hasattr(self._engine, "get_profile_shape_input"):  # as 8.6 calls it
            return self._engine.get_profile_shape_input(profile, name)
        return None

    def _spec(self, name: str) -> TensorSpec:
        dtype = self._api.dtype(self._engine.get_tensor_dtype(name))
        if not dtype:
            message = f"{name!r} is of a type that NumPy lacks: cast it in the model"
            raise BuildError(message)
        if self._engine.get_tensor_vectorized_dim(name) >= 0:
            message = f"{name!r} has a vectorized layout: build the engine with linear tensors"
            raise BuildError(message)
        shape = tuple("?" if n < 0 else int(n) for n in self._engine.get_tensor_shape(name))
        return TensorSpec(name=name, dtype=dtype, shape=shape)


def _sizes(dims: Any) -> Sizes:  # noqa: ANN401  untyped bindings
    return tuple(int(size) for size in dims)
