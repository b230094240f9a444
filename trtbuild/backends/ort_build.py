"""Builds ONNX Runtime engines: optimize a staged graph for this processor, read it back."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

from trtbuild.backends import memory, processor, profiles, staging
from trtbuild.backends.diagnosis import MEMORY_WORDS
from trtbuild.backends.job import PROGRESS
from trtbuild.backends.ort_layers import read_layers
from trtbuild.backends.ort_lowering import SLOW_FUSIONS, fuse_biases
from trtbuild.backends.ort_session import specs_of
from trtbuild.engine import BuildRecord
from trtbuild.errors import BuildError
from trtbuild.graph.outline import read_outline, write_copy

if TYPE_CHECKING:
    from trtbuild.engine import ShapeRange, Target
    from trtbuild.graph import Graph

_PROTOBUF_LIMIT_BYTES = 2**31 - 1
"""An engine is one ONNX file, weights included."""

_ERRORS_ONLY = 3


def build(
    graph: Graph, ranges: tuple[tuple[ShapeRange, ...], ...], target: Target, out: Path
) -> BuildRecord:
    """Write the engine of ``graph`` for this processor to ``out``.

    Raises:
        BuildError: see :func:`trtbuild.backends.onnxruntime.build`.
        MemoryError: the optimizer could not get memory.
    """
    started = time.perf_counter()
    if target.arch != processor.arch():
        message = (
            f"{graph.path}: ONNX Runtime builds for this processor, {processor.arch()}, not "
            f"for {target.arch}: build on such a machine"
        )
        raise BuildError(message)
    profiles.check(graph, ranges)
    with tempfile.TemporaryDirectory(prefix=".stage-", dir=out.parent) as folder:
        PROGRESS.debug("reading the model")
        staged = staging.stage(graph, Path(folder) / "model", _PROTOBUF_LIMIT_BYTES)
        PROGRESS.debug("optimizing the graph")
        session = _optimize(graph, staged, out)
    PROGRESS.debug("reading the optimized graph back")
    optimized = read_outline(out)
    if fuse_biases(optimized.proto):
        fused = out.with_name(f"{out.name}.fused")
        write_copy(optimized, out, fused)
        fused.replace(out)
    layers = read_layers(optimized.proto, staged)
    return BuildRecord(
        layers=layers,
        inputs=specs_of(session.get_inputs()),
        outputs=specs_of(session.get_outputs()),
        warnings=(),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=memory.peak_rss_bytes(),
    )


def _optimize(graph: Graph, staged: staging.Staged, out: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(out)
    options.log_severity_level = _ERRORS_ONLY
    try:
        session = ort.InferenceSession(
            str(staged.path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(SLOW_FUSIONS),
        )
    except Exception as error:  # the binding's exceptions share no base class
        text = staged.original(" ".join(str(error).split()))
        if isinstance(error, MemoryError) or any(word in text for word in MEMORY_WORDS):
            raise MemoryError(text) from error
        message = (
            f"{graph.path}: ONNX Runtime {ort.__version__} refuses the model: {text}. Replace "
            "what it names, or build for another backend"
        )
        raise BuildError(message) from error
    if not out.exists():
        message = f"{graph.path}: ONNX Runtime {ort.__version__} wrote no optimized model"
        raise BuildError(message)
    return session
