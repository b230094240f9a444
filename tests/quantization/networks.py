"""A small network with what makes quantization hard, trained-like, and images for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from tests.graph import models
from trtbuild.graph.model import read_graph
from trtbuild.graph.observe import with_outputs
from trtbuild.graph.optimize import optimize
from trtbuild.quantization.calibrate import Collection, calibrate
from trtbuild.quantization.quantize import placement_of, quantize
from trtbuild.quantization.thresholds import thresholds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tests.graph.models import Array
    from trtbuild.backends.scheme import Scheme
    from trtbuild.batches import Batch
    from trtbuild.graph import Graph
    from trtbuild.quantization.ranges import Ranges

IMAGE = (3, 16, 16)

NETWORK = """network (float[N, 3, 16, 16] x) => (float[N, 8, 8, 8] middle, float[N, 10] y) {
    stem = Conv<pads = [1, 1, 1, 1]>(x, stem_w, stem_b)
    stem_r = Relu(stem)
    pool = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(stem_r)
    wise = Conv<pads = [1, 1, 1, 1], group = 8>(pool, wise_w, wise_b)
    six = Clip(wise, zero, limit)
    left = Conv<pads = [1, 1, 1, 1]>(six, shared_w, left_b)
    middle = Relu(left)
    right = Conv<pads = [1, 1, 1, 1]>(middle, shared_w)
    sum = Add(right, six)
    sum_r = Relu(sum)
    joined = Concat<axis = 1>(sum_r, middle, pool)
    dead = Conv(joined, dead_w, dead_b)
    dead_r = Relu(dead)
    soft = Softplus(dead_r)
    last = Conv(soft, last_w, last_b)
    mean = GlobalAveragePool(last)
    flat = Flatten(mean)
    nothing = Mul(flat, nought)
    none = Gemm<transB = 1>(nothing, head_w)
    head = Gemm<transB = 1>(flat, head_w, head_b)
    y = Add(head, none)
}"""
"""In order: convolutions with Relu, pooling, a depthwise convolution with Clip, a weight that
two convolutions share, an output in the middle, a residual Add, a Concat, a dead channel with a
bias, a Softplus that stays in float and reads what others read too, and a tensor of zeros."""


def _weight(*shape: int, seed: int) -> Array:
    """He initialization with a spread over channels, as training leaves it."""
    spread = np.exp(models.normal(shape[0], seed=seed + 100) / 2)
    scale = np.sqrt(2 / np.prod(shape[1:])) * spread.reshape(-1, *(1,) * (len(shape) - 1))
    return np.asarray(models.normal(*shape, seed=seed) * scale, np.float32)


def weights() -> dict[str, Array]:
    dead = _weight(8, 24, 1, 1, seed=5)
    dead[2] = 0.0
    return {
        "stem_w": _weight(8, 3, 3, 3, seed=1),
        "stem_b": models.normal(8, seed=2) / 10,
        "wise_w": _weight(8, 1, 3, 3, seed=3),
        "wise_b": models.normal(8, seed=12) / 10,
        "zero": np.array(0, np.float32),
        "limit": np.array(6, np.float32),
        "shared_w": _weight(8, 8, 3, 3, seed=4),
        "left_b": models.normal(8, seed=6) / 10,
        "dead_w": dead,
        "dead_b": 3 + models.normal(8, seed=7),
        "last_w": _weight(16, 8, 1, 1, seed=8),
        "last_b": models.normal(16, seed=9) / 10,
        "nought": np.zeros(1, np.float32),
        "head_w": _weight(10, 16, seed=10),
        "head_b": models.normal(10, seed=11),
    }


def network(folder: Path) -> Graph:
    """Write the network, optimized as the pipeline does it."""
    source = models.write(folder / "source.onnx", NETWORK, weights())
    return optimize(source, folder / "network.onnx")[0]


def images(number: int, seed: int = 0) -> Array:
    """Return smooth images [number, 3, 16, 16]: neighbors are alike, as in photographs."""
    noise = models.normal(number, 3, 20, 20, seed=seed)
    windows = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(2, 3))
    return np.ascontiguousarray(windows.mean(axis=(4, 5)) * 5)


def collect(graph: Graph, tensors: tuple[str, ...], feeds: Iterable[Batch]) -> Ranges:
    """Return the ranges of a graph over batches of arrays by input name."""
    how = Collection(work=graph.path.parent, progress=lambda _: None)
    return calibrate(graph, tensors, feeds, how)


def measure(graph: Graph, tensors: Iterable[str], batches: Sequence[Array]) -> Ranges:
    """Return the ranges of a graph with one input over batches for it."""
    name = graph.inputs[0].name
    feeds = [{name: batch} for batch in batches]
    return collect(graph, tuple(tensors), feeds)


def quantized(
    graph: Graph, scheme: Scheme, data: Array, keep_float: tuple[str, ...] = ()
) -> Graph:
    """Return the Q/DQ graph of ``graph``, its ranges those of ``data``; checked by onnx."""
    placement = placement_of(graph, scheme, keep_float)
    ranges = measure(graph, placement.observed, [data])
    limits = thresholds(ranges, placement.observed, "minmax", scheme)
    out = graph.path.parent / f"{scheme.name}.onnx"
    result = quantize(graph, placement, limits, scheme, out)
    onnx.checker.check_model(str(result.path), full_check=True)
    assert read_graph(result.path).sha256 == result.sha256
    return result


def constants(graph: Graph) -> dict[str, Array]:
    """Return the weight of each node whose second input is a constant."""
    model = onnx.load(graph.path)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {
        n.name: arrays[n.input[1]]
        for n in model.graph.node
        if n.input[1:2] and n.input[1] in arrays
    }


def observed(graph: Graph, tensor: str, data: Array) -> Array:
    """Return an inner tensor as ONNX Runtime computes it."""
    out = with_outputs(graph, (tensor,), graph.path.parent / "observed.onnx")
    return models.run(out.path, {graph.inputs[0].name: data})[tensor]
