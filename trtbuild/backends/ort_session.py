"""Runs ONNX Runtime engines and plain graphs on this machine's processor.

The runtime half of the backend: imports NumPy and ONNX Runtime, and reads no ONNX itself.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import onnxruntime as ort

from trtbuild.backends import feeds, processor
from trtbuild.backends import metrics as figures
from trtbuild.backends.pool import Pool
from trtbuild.backends.profile_choice import Bounds, choose
from trtbuild.backends.session import DEFAULT, NOTHING
from trtbuild.engine import Target, TensorSpec
from trtbuild.errors import (
    BuildError,
    DataError,
    SourceError,
    TrtbuildError,
    TrustError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt
    from typing_extensions import Self

    from trtbuild.backends import Session
    from trtbuild.backends.session import Attached, LoadedSession, SessionOptions
    from trtbuild.engine import Manifest, Setting, ShapeRange
    from trtbuild.trust.candidate import Admission

_ERRORS_ONLY = 3
_MANY = 1 << 20
_PATIENCE_S = 10.0
_PROVIDERS = ["CPUExecutionProvider"]

_RELU_REWRITE = "ReluQuantRewrite"
"""Takes a Relu away before a QuantizeLinear whose codes start at 0. It takes FP8's for such
codes (ONNX Runtime 1.32), which have a sign: negative values came through."""

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
}


class _Argument(Protocol):
    """What ONNX Runtime tells of an input or output."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> list[int | str | None]: ...


class _OrtSession:
    """A session of ONNX Runtime, whose ``run`` may be called by many threads."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._inputs = specs_of(session.get_inputs())
        self._outputs = specs_of(session.get_outputs())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that :meth:`run` expects."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs that :meth:`run` returns."""
        return self._outputs

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs by name.

        Raises:
            UsageError: an array is missing, unknown, or has another type or shape.
            DataError: the model fails on what the arrays hold.
        """
        feeds.check(self._inputs, inputs)
        self._check_shapes(inputs)
        names = [spec.name for spec in self._outputs]
        with failures(inputs):
            outputs = self._session.run(names, dict(inputs))
        return dict(zip(names, outputs, strict=True))

    def _check_shapes(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take every shape that fits the graph; an engine takes fewer."""


class _ServedSession(_OrtSession):
    """A session of an engine in a service: counted, bounded in callers, closed by name.

    It takes what one of ``profiles`` holds, as an engine on a GPU does.
    """

    admission: Admission | None = None

    def __init__(
        self,
        session: ort.InferenceSession,
        callers: int,
        target: Target,
        profiles: tuple[tuple[ShapeRange, ...], ...],
    ) -> None:
        super().__init__(session)
        self._profiles = [_bounds(profile, self._inputs) for profile in profiles]
        pool = Pool(object, callers)
        self._pool = pool  # and not self in the figures, which outlive the session
        self._stats = figures.Metrics(
            {"backend": target.backend, "arch": target.arch},
            {
                "contexts": lambda: pool.made,
                "contexts_in_use": lambda: pool.in_use,
                "contexts_limit": lambda: pool.limit,
            },
            {
                "context_waits": lambda: pool.waits,
                "context_wait_seconds": lambda: pool.waited_s,
            },
        )

    @property
    def stats(self) -> figures.Metrics:
        """What the session counts."""
        return self._stats

    def metrics(self) -> str:
        """Return what the session counts as Prometheus text."""
        return figures.render([self._stats])

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs by name; raises as without a service."""
        start = time.perf_counter()
        try:
            permit = self._pool.take()
            try:
                outputs = super().run(inputs)
            finally:
                self._pool.give(permit)
        except TrtbuildError as error:
            self._stats.error(error)
            raise
        self._stats.call(time.perf_counter() - start)
        return outputs

    def _check_shapes(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        for spec in self._inputs:
            got = inputs[spec.name].shape
            if 0 in got and 0 not in spec.shape:
                message = (
                    f"input {spec.name!r}: expected sizes of 1 and more, got shape "
                    f"{list(got)}: do not call the engine with nothing"
                )
                raise UsageError(message)
        if self._profiles:
            choose(
                self._profiles, {spec.name: inputs[spec.name].shape for spec in self._inputs}
            )

    @property
    def host_tensors(self) -> frozenset[str]:
        """All tensors: the engine runs on the processor."""
        return frozenset(spec.name for spec in (*self.inputs, *self.outputs))

    def run_device(
        self,
        inputs: Mapping[str, object],
        outputs: Mapping[str, object] | None = None,
        stream: int | None = None,
    ) -> dict[str, Any]:
        """Refuse: there is no device.

        Raises:
            UsageError: always.
        """
        del inputs, outputs, stream
        message = "an ONNX Runtime engine runs on the processor: call run with NumPy arrays"
        raise UsageError(message)

    def warm_up(self, inputs: Mapping[str, npt.NDArray[Any]], runs: int) -> None:
        """Run ``runs`` times; callers share what the library keeps between runs."""
        for _ in range(runs):
            super().run(inputs)

    def close(self) -> None:
        """Refuse later calls; the library frees its memory with the session."""
        self._pool.close(_PATIENCE_S, lambda: None)

    def __enter__(self) -> Self:
        """Return the session itself."""
        return self

    def __exit__(self, *_raised: object) -> None:
        """Close the session."""
        self.close()


@contextmanager
def failures(inputs: Mapping[str, npt.NDArray[Any]]) -> Iterator[None]:
    """Say on which ``inputs`` a run fails, in ONNX Runtime's words.

    Raises:
        DataError: the run inside fails.
    """
    try:
        yield
    except Exception as error:  # the binding's exceptions share no base class
        given = ", ".join(f"{n} {a.dtype.name}{list(a.shape)}" for n, a in inputs.items())
        message = (
            f"ONNX Runtime {ort.__version__} fails while it runs the model on {given}: "
            f"{' '.join(str(error).split())}. Give values that the model takes (no index "
            f"beyond a table, no sizes that do not go together), or fewer at once if memory "
            f"is short"
        )
        raise DataError(message) from error


def cannot_run(target: Target, settings: tuple[tuple[str, Setting], ...] = ()) -> str:
    """Return why an engine for ``target`` cannot run here, or an empty string."""
    del settings  # none makes an engine for more than one processor
    here = Target(backend=target.backend, arch=processor.arch(), os=processor.os_name())
    if here == target:
        return ""
    return (
        f"the engine is for {target.arch} on {target.os}, this machine is {here.arch} on "
        f"{here.os}: build it here, or move"
    )


def version(backend: str) -> str:
    """Return the installed ONNX Runtime."""
    return f"{backend} {ort.__version__}"


def preflight(manifest: Manifest, options: SessionOptions) -> None:
    """Refuse an engine for another machine or version, and options that it has no use for.

    Raises:
        TrustError: the engine is not for this processor, or not for this ONNX Runtime.
        UsageError: an option is one of GPUs.
    """
    reason = cannot_run(manifest.preimage.target)
    if reason:
        message = f"engine {manifest.sha256[:12]} cannot run here: {reason}"
        raise TrustError(message)
    built_with = manifest.preimage.fingerprint.version
    if built_with != ort.__version__:
        message = (
            f"engine {manifest.sha256[:12]} was built with onnxruntime {built_with}, here is "
            f"{ort.__version__}: build it again with this version, or install that one"
        )
        raise TrustError(message)
    for name in ("cuda_graphs", "weight_budget_mib", "allow_host_code", "device"):
        if getattr(options, name) != getattr(DEFAULT, name):
            message = f"{name} is for engines on a GPU, this one runs on a processor: leave it"
            raise UsageError(message)


def open_session(
    engine: bytes,
    target: Target,
    options: SessionOptions = DEFAULT,
    attached: Attached = NOTHING,
    profiles: tuple[tuple[ShapeRange, ...], ...] = (),
) -> LoadedSession:
    """Return a session of an engine, run as it was optimized, in shapes of ``profiles``.

    Without profiles every size of 1 and more will do; a size of 0 ends the process in some
    operators (GRU of ONNX Runtime 1.32). ``contexts`` bounds how many callers run at once
    (0: no bound); there are no CUDA graphs.

    Raises:
        TrustError: the engine is for another machine, or ONNX Runtime refuses its bytes.
    """
    if attached != NOTHING:
        message = "an ONNX Runtime engine has no plug-ins, and its weights are in it"
        raise ValueError(message)
    reason = cannot_run(target)
    if reason:
        raise TrustError(reason)
    settings = _options(ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    try:
        session = ort.InferenceSession(engine, settings, providers=_PROVIDERS)
        return _ServedSession(session, options.contexts or _MANY, target, profiles)
    except Exception as error:  # the binding's exceptions share no base class
        message = (
            f"ONNX Runtime {ort.__version__} refuses the engine "
            f"({' '.join(str(error).split())}): build it again with this version"
        )
        raise TrustError(message) from error


def open_graph(path: Path, *, fused: bool) -> Session:
    """Return a session of the ONNX file ``path``.

    With ``fused`` false the Q/DQ pairs are computed as they are written: values are rounded to
    8 bits, and convolutions and matrix products see the rounded values in floating point
    (``session.disable_quant_qdq``; the result equals that of a session without any
    optimization up to the order of additions). With ``fused`` true they become integer kernels.

    Raises:
        SourceError: the file cannot be read.
        BuildError: ONNX Runtime cannot run the graph.
    """
    if not path.is_file():
        message = f"{path}: no such file, so there is no graph to run"
        raise SourceError(message)
    options = _options(ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    disabled: list[str] = []
    if not fused:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        disabled.append(_RELU_REWRITE)
    try:
        session = ort.InferenceSession(
            str(path), options, providers=_PROVIDERS, disabled_optimizers=disabled
        )
        return _OrtSession(session)
    except Exception as error:  # the binding's exceptions share no base class
        message = (
            f"{path}: ONNX Runtime {ort.__version__} cannot run the graph: "
            f"{' '.join(str(error).split())}. Replace what it names"
        )
        raise BuildError(message) from error


def _bounds(
    profile: tuple[ShapeRange, ...], inputs: tuple[TensorSpec, ...]
) -> dict[str, Bounds]:
    names = {spec.name for spec in inputs}
    return {
        item.input: Bounds(min=item.min, opt=item.opt, max=item.max)
        for item in profile
        if item.input in names
    }


def specs_of(arguments: Iterable[_Argument]) -> tuple[TensorSpec, ...]:
    """Return what ONNX Runtime tells of inputs or outputs, as specs."""
    return tuple(
        TensorSpec(
            name=argument.name,
            dtype=_DTYPES.get(argument.type, argument.type[len("tensor(") : -1]),
            shape=tuple("?" if size is None else size for size in argument.shape),
        )
        for argument in arguments
    )


def _options(level: ort.GraphOptimizationLevel) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = _ERRORS_ONLY
    return options
