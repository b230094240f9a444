"""Small real models written as text, and ONNX Runtime without optimizations as their judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from trtbuild.graph.model import read_graph

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trtbuild.graph import Graph

Array = npt.NDArray[Any]


def proto(
    text: str, weights: Mapping[str, Array], *, opset: int = 17, ir_version: int = 8
) -> onnx.ModelProto:
    """Return the model ``text`` (ONNX's own syntax, without its header) with ``weights``.

    Nodes are called after their operator and place, ``Conv_0``.
    """
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n'
    model = onnx.parser.parse_model(header + text)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()
    )
    return model


def write(
    path: Path, text: str, weights: Mapping[str, Array], *, opset: int = 17, ir_version: int = 8
) -> Graph:
    """Write the model and return its graph."""
    onnx.save(proto(text, weights, opset=opset, ir_version=ir_version), path)
    return read_graph(path)


def run(path: Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs of a model as ONNX Runtime computes them node by node."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def operators(path: Path) -> list[str]:
    """Return the operators of the main graph, in order."""
    model = onnx.load(path, load_external_data=False)
    return [node.op_type for node in model.graph.node]


def normal(*shape: int, seed: int = 0) -> Array:
    """Return normally distributed float32 numbers, the same at every call."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sqnr_db(expected: Array, got: Array) -> float:
    """Return the ratio of signal to noise in decibels; infinite without noise."""
    wide = expected.astype(np.float64)
    noise = float(np.sum((wide - got.astype(np.float64)) ** 2))
    return 10 * float(np.log10(np.sum(wide**2) / noise)) if noise else float("inf")
