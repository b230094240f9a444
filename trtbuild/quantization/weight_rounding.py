"""Round the weights of a graph for the network that will be written of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtbuild.backends.ort_session import open_graph
from trtbuild.graph.model import load_model, save_model
from trtbuild.graph.observe import with_outputs
from trtbuild.graph.passes.rewiring import new_constant
from trtbuild.quantization import chunks
from trtbuild.quantization.rounding import VERSION as METHOD
from trtbuild.quantization.rounding import rounded
from trtbuild.quantization.written import written_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt
    import onnx_ir as ir

    from trtbuild.batches import Array, Batch
    from trtbuild.graph import Graph

    Doubles = npt.NDArray[np.float64]

VERSION = METHOD * 1000 + 1
"""Part of the key of a graph with rounded weights; raised when it becomes another."""

_LARGEST = 4096
"""Inputs of a layer beyond which its second moment, and the inverse of that, take too long."""

_STEPS = 24
"""Bits below the square of an activation's magnitude in which products are counted: sums of
whole steps are exact in float64 up to 2**29 times that square, in any order of the samples."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Which weights to round: those of ``nodes`` of ``graph``, on the grids of ``network``.

    ``network`` is the Q/DQ graph of ``graph``; codes lie between ``-limit`` and ``limit``.
    ``amax`` is about the largest magnitude of each layer's input.
    """

    graph: Graph
    network: Graph
    nodes: tuple[str, ...]
    limit: int
    amax: Mapping[str, float]


def round_weights(
    job: Job, batches: Iterable[Batch], work: Path, out: Path
) -> tuple[Graph, int]:
    """Return the graph with weights on their grids, written to ``out``, and of how many layers.

    Writing the network again gives just these weights: the largest of each channel, which
    decides its scale, stays where it is. Layers are matrix products, and convolutions without
    groups, of up to 4,096 inputs. Second moments are those of the unquantized inputs.
    """
    model = load_model(job.graph.path)
    written = written_weights(job.network)
    layers = [n for n in model.graph if n.name in job.nodes and n.name in written and _fits(n)]
    moments = _second_moments(job, layers, batches, work)
    for node in layers:
        before = _array(node)
        matrix = _matrix(node, before.astype(np.float64))
        weight = written[node.name or ""]
        scale = _matrix(node, weight.scale)
        values = rounded(matrix, moments[_moment_key(node)], _Grid(matrix, scale, job.limit))
        array = _shaped(node, values, before.shape).astype(np.float32)
        name = f"{node.name}.rounded"
        node.replace_input_with(1, new_constant(model.graph, name, array))
    return save_model(model, out), len(layers)


class _Grid:
    """The nearest codes times scale; the largest codes of each channel stay as they are."""

    def __init__(self, matrix: Doubles, scale: Doubles, limit: int) -> None:
        self._scale = scale
        self._limit = limit
        codes = np.clip(np.rint(matrix / scale), -limit, limit)
        self._fixed = np.where(np.abs(codes) == limit, codes, 0.0)

    def __call__(self, column: Doubles, index: int) -> Doubles:
        scale, fixed = self._scale[:, index], self._fixed[:, index]
        codes = np.clip(np.rint(column / scale), -self._limit, self._limit)
        return np.asarray(np.where(fixed != 0, fixed, codes) * scale)


def _fits(node: ir.Node) -> bool:
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return False
    shape = weight.const_value.numpy().shape
    if node.op_type == "Conv":
        plain = node.attributes.get_int("group", 1) == 1 and len(shape) == 4  # noqa: PLR2004  images, channels first
        padded = node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        return plain and padded and int(np.prod(shape[1:])) <= _LARGEST
    product = node.op_type in {"MatMul", "Gemm"} and len(shape) == 2  # noqa: PLR2004  a matrix
    straight = node.attributes.get_int("transA", 0) == 0
    return product and straight and max(shape) <= _LARGEST


def _matrix(node: ir.Node, array: Doubles) -> Doubles:
    """Return a weight as [outputs, inputs]."""
    if node.op_type == "Conv":
        return array.reshape(len(array), -1)
    return array if node.attributes.get_int("transB", 0) else array.T


def _shaped(node: ir.Node, matrix: Doubles, shape: tuple[int, ...]) -> Doubles:
    if node.op_type == "Conv" or node.attributes.get_int("transB", 0) != 0:
        return matrix.reshape(shape)
    return matrix.T


def _array(node: ir.Node) -> npt.NDArray[np.float32]:
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        raise ValueError(f"{node.name} has no constant weight")
    return np.asarray(weight.const_value.numpy(), np.float32)


_Key = tuple[str, tuple[int, ...]]
"""An activation, and how its elements become the inputs of a layer; empty for products."""


def _moment_key(node: ir.Node) -> _Key:
    data = node.inputs[0]
    name = data.name or "" if data is not None else ""
    if node.op_type != "Conv":
        return name, ()
    kernel = tuple(_array(node).shape[2:])
    strides = tuple(node.attributes.get_ints("strides", (1, 1)))
    dilations = tuple(node.attributes.get_ints("dilations", (1, 1)))
    pads = tuple(node.attributes.get_ints("pads", (0, 0, 0, 0)))
    return name, (*kernel, *strides, *dilations, *pads)


def _second_moments(
    job: Job, layers: list[ir.Node], batches: Iterable[Batch], work: Path
) -> dict[_Key, Doubles]:
    """Return the sum of x xᵀ over all samples and positions for the inputs of each layer."""
    keys = tuple(dict.fromkeys(_moment_key(node) for node in layers))
    tensors = tuple(dict.fromkeys(name for name, _ in keys))
    # A power of two for each layer, not for each sample: only then are the sums exact.
    steps = {
        name: np.ldexp(1.0, 2 * math.frexp(job.amax.get(name, 1.0))[1] - _STEPS)
        for name in tensors
    }
    total: dict[_Key, Doubles] = {}
    for arrays in _activations(job.graph, tensors, batches, work):
        for key in keys:
            for sample in arrays[key[0]]:
                rows = _rows(sample.astype(np.float64), key[1])
                counted = np.rint(rows.T @ rows / steps[key[0]])
                total[key] = total[key] + counted if key in total else counted
    return total


def _rows(sample: Doubles, window: tuple[int, ...]) -> Doubles:
    """Return one sample as [positions, inputs of the layer]."""
    if not window:
        return sample.reshape(-1, sample.shape[-1])
    height, width, down, right, apart_y, apart_x, top, left, bottom, other = window
    padded = np.pad(sample, ((0, 0), (top, bottom), (left, other)))
    spans = ((height - 1) * apart_y + 1, (width - 1) * apart_x + 1)
    views = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(1, 2))
    taken = views[:, ::down, ::right, ::apart_y, ::apart_x]
    return taken.transpose(1, 2, 0, 3, 4).reshape(-1, len(sample) * height * width)


def _activations(
    graph: Graph, tensors: tuple[str, ...], batches: Iterable[Batch], work: Path
) -> Iterator[dict[str, Array]]:
    """Yield the tensors of all samples, a chunk at a time, without samples that fill it up."""
    given = {spec.name for spec in graph.inputs}
    inner = tuple(name for name in tensors if name not in given)
    session = open_graph(with_outputs(graph, inner, work / "inputs.onnx").path, fused=True)
    fixed = chunks.fixed_size(graph)
    size, seen = chunks.CHUNK if fixed is None else fixed, 0
    for chunk in chunks.chunked(batches, graph, size):
        short = chunks.is_short(chunk, size)
        full = chunks.filled(chunk, size) if short else chunk
        count = chunks.samples(chunk)
        with chunks.located(seen, count):
            found = session.run(full) if inner else {}
        seen += count
        arrays = {**full, **found}
        yield {name: arrays[name][:count] if short else arrays[name] for name in tensors}
