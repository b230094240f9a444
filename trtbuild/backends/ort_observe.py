"""Runs graphs on ONNX Runtime for what is inside them, at the speed of a plain forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from trtbuild.backends import feeds
from trtbuild.backends.ort_session import failures, specs_of
from trtbuild.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from trtbuild.engine import TensorSpec

_ERRORS_ONLY = 3
_PROVIDERS = ["CPUExecutionProvider"]
_SMALL_BYTES = "1024"
"""Constants below this stay in the graph's file: shapes, axes, scalars."""


class Observed:
    """A session that leaves its outputs where ONNX Runtime made them, and its threads idle."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._inputs = specs_of(session.get_inputs())
        self._names = [output.name for output in session.get_outputs()]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that :meth:`run` expects."""
        return self._inputs

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs by name, as views where ONNX Runtime lends its memory.

        Let go of them before the next run, so that it finds that memory free.

        Raises:
            UsageError: an array is missing, unknown, or has another type or shape.
            DataError: the model fails on what the arrays hold.
        """
        feeds.check(self._inputs, inputs)
        values = {n: ort.OrtValue.ortvalue_from_numpy(array) for n, array in inputs.items()}
        with failures(inputs):
            outputs = self._session.run_with_ort_values(self._names, values)
        return {name: value.numpy() for name, value in zip(self._names, outputs, strict=True)}


def write_optimized(path: Path, out: Path) -> tuple[TensorSpec, ...]:
    """Write the graph at ``path`` to ``out`` as ONNX Runtime optimizes it for this processor.

    Returns its outputs, with what ONNX Runtime knows of their shapes. Weights go to a file
    beside it, so that a session can map instead of read them.

    Raises:
        BuildError: ONNX Runtime cannot run the graph, or cannot write it.
    """
    options = _options(ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    options.optimized_model_filepath = str(out)
    prefix = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(f"{prefix}file_name", f"{out.name}.data")
    options.add_session_config_entry(f"{prefix}min_size_in_bytes", _SMALL_BYTES)
    return specs_of(_session(path, options).get_outputs())


def open_observed(path: Path, *, optimized: bool, frugal: bool = False) -> Observed:
    """Return a session of ``path``, run as it is written where it is ``optimized`` already.

    A ``frugal`` one gives every tensor's memory back at once, and is slower: what ONNX Runtime
    keeps for the next tensor grows in powers of two.

    Raises:
        BuildError: ONNX Runtime cannot run the graph.
    """
    levels = ort.GraphOptimizationLevel
    options = _options(levels.ORT_DISABLE_ALL if optimized else levels.ORT_ENABLE_ALL)
    # Threads that wait by spinning would take the processors from those that observe.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # From the second run on a pattern would be allocated beside what the first one left.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = not frugal
    return Observed(_session(path, options))


def _session(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), options, providers=_PROVIDERS)
    except Exception as error:  # the binding's exceptions share no base class
        message = (
            f"{path}: ONNX Runtime {ort.__version__} cannot run the graph: "
            f"{' '.join(str(error).split())}. Replace what it names"
        )
        raise BuildError(message) from error


def _options(level: ort.GraphOptimizationLevel) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = _ERRORS_ONLY
    return options
