"""Runs ONNX Runtime engines and plain graphs on this machine's processor.

The runtime half of the backend: imports NumPy and ONNX Runtime, and reads no ONNX itself.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import onnxruntime as ort

from trtbuild.backends import feeds, processor
from trtbuild.engine import Target, TensorSpec
from trtbuild.errors import BuildError, DataError, SourceError, TrustError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from trtbuild.backends import Session

_ERRORS_ONLY = 3
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
        names = [spec.name for spec in self._outputs]
        with failures(inputs):
            outputs = self._session.run(names, dict(inputs))
        return dict(zip(names, outputs, strict=True))


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


def cannot_run(target: Target) -> str:
    """Return why an engine for ``target`` cannot run here, or an empty string."""
    here = Target(backend=target.backend, arch=processor.arch(), os=processor.os_name())
    if here == target:
        return ""
    return (
        f"the engine is for {target.arch} on {target.os}, this machine is {here.arch} on "
        f"{here.os}: build it here, or move"
    )


def open_session(engine: bytes, target: Target) -> Session:
    """Return a session of an engine, run as it was optimized.

    Raises:
        TrustError: the engine is for another machine, or ONNX Runtime refuses its bytes.
    """
    reason = cannot_run(target)
    if reason:
        raise TrustError(reason)
    options = _options(ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    try:
        return _OrtSession(ort.InferenceSession(engine, options, providers=_PROVIDERS))
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
