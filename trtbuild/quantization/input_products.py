"""Mean products of the inputs of layers: what a weight is worth, and what can replace it.

For a layer that computes ``w @ x`` the mean of ``x x'`` over all samples and positions decides
the mean squared error of any other ``w``. Convolutions are looked at as products with the
patches that they read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtbuild.backends.ort_session import open_graph
from trtbuild.errors import DataError
from trtbuild.graph.model import load_model
from trtbuild.graph.observe import with_outputs
from trtbuild.quantization import chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    import onnx_ir as ir

    from trtbuild.batches import Array, Batch
    from trtbuild.graph import Graph
    from trtbuild.quantization.prune import Prunable

    Doubles = npt.NDArray[np.float64]

VERSION = 1
"""Part of the key of a pruned graph; raised when moments start to be others."""

_POSITIONS = 512
"""Positions of a sample that count at first, drawn anew for each chunk: neighbors in an image
are alike, and all of them would cost many times the forward pass."""

_ENOUGH = 16
"""Positions per input of a layer after which fewer of each sample will do. Every sample has the
same weight, however many of its positions count."""

_FEWER = 32

_GROUP_BYTES = 512 << 20
"""Matrices that are collected in one pass over the data; more layers take more passes."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Where moments come from: ``batches`` gives the calibration data anew for every pass.

    The observed graph is written into the folder ``work``. ``progress`` is called with the
    number of samples seen so far in all passes.
    """

    batches: Callable[[], Iterable[Batch]]
    work: Path
    progress: Callable[[int], None]


def second_moments(
    graph: Graph, layers: Sequence[Prunable], over: Pass
) -> Iterator[dict[str, Doubles]]:
    """Yield the moments [inputs, inputs] of some layers after the others, by node.

    An input is a channel, or for a convolution a channel at a place of its kernel, channels
    outermost, as in its weight.

    Raises:
        DataError: there is no data, or a layer reads NaN or infinite values.
    """
    nodes = {node.name: node for node in load_model(graph.path).graph}
    seen = 0
    for group in _groups(nodes, layers):
        sums = {layer.node: _Moment() for layer in group}
        before = seen
        for observed, count in _observed(graph, group, over):
            for layer in group:
                drawn = _Drawn(number=sums[layer.node].positions, seed=seen)
                rows = _rows(layer, observed[layer.data], nodes[layer.node], drawn)
                if not np.isfinite(rows).all():
                    raise DataError(
                        f"calibration samples {seen} to {seen + count - 1}: {layer.data!r} has "
                        f"NaN or infinite values. Remove these samples, or correct the model"
                    )
                sums[layer.node].add(rows, count)
            seen += count
            over.progress(seen)
        if seen == before:
            raise DataError("the calibration data is empty: expected at least one sample")
        yield {node: moment.mean() for node, moment in sums.items()}


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """How many positions of a sample count, and what they are drawn with.

    A fixed distance between them would fall on the same column of every row.
    """

    number: int
    seed: int

    def of(self, count: int, samples: int) -> npt.NDArray[np.int64]:
        """Return places of ``count`` rows of so many samples, all where that is few enough."""
        wanted = self.number * samples
        if wanted >= count:
            return np.arange(count)
        random = np.random.default_rng(self.seed)
        return np.sort(random.choice(count, wanted, replace=False))


class _Moment:
    """A running sum of products, each sample's mean counting once."""

    def __init__(self) -> None:
        self._sum: Doubles | None = None
        self._rows = 0
        self._samples = 0

    @property
    def positions(self) -> int:
        """How many positions of a sample are to count."""
        enough = self._sum is not None and self._rows >= _ENOUGH * len(self._sum)
        return _FEWER if enough else _POSITIONS

    def add(self, rows: npt.NDArray[np.float32], samples: int) -> None:
        """Add the products of [positions, inputs] of so many samples."""
        products = (rows.T @ rows).astype(np.float64) * (samples / len(rows))
        self._sum = products if self._sum is None else self._sum + products
        self._rows += len(rows)
        self._samples += samples

    def mean(self) -> Doubles:
        """Return the mean of all products."""
        if self._sum is None:
            raise ValueError("no rows were added")
        return self._sum / self._samples


def _groups(
    nodes: Mapping[str | None, ir.Node], layers: Sequence[Prunable]
) -> Iterator[list[Prunable]]:
    """Yield layers whose matrices fit into memory together."""
    group: list[Prunable] = []
    total = 0
    for layer in layers:
        inputs = _inputs(layer, nodes[layer.node])
        size = inputs * inputs * 8
        if group and total + size > _GROUP_BYTES:
            yield group
            group, total = [], 0
        group.append(layer)
        total += size
    if group:
        yield group


def _inputs(layer: Prunable, node: ir.Node) -> int:
    shape = _shape(layer, node)
    outputs = shape[1 - layer.axis]
    return int(np.prod(shape)) // outputs


def _shape(layer: Prunable, node: ir.Node) -> tuple[int, ...]:
    weight = node.inputs[layer.weight]
    if weight is None or weight.const_value is None:
        raise ValueError(f"{layer.node} has no weight")
    return tuple(weight.const_value.numpy().shape)


def _observed(
    graph: Graph, group: Sequence[Prunable], over: Pass
) -> Iterator[tuple[dict[str, Array], int]]:
    """Yield the tensors that the layers of a group read, and of how many samples they are."""
    inputs = {spec.name for spec in graph.inputs}
    inner = tuple(dict.fromkeys(each.data for each in group if each.data not in inputs))
    session = open_graph(
        with_outputs(graph, inner, over.work / "moments.onnx").path, fused=True
    )
    fixed = chunks.fixed_size(graph)
    size, seen = chunks.CHUNK if fixed is None else fixed, 0
    for chunk in chunks.chunked(over.batches(), graph, size):
        whole = dict(chunk)
        if fixed and chunks.is_short(chunk, size):
            whole = chunks.filled(chunk, size)
        count = chunks.samples(chunk)
        with chunks.located(seen, count):
            found = session.run(whole) if inner else {}
        yield {**whole, **found}, count
        seen += count


def _rows(
    layer: Prunable, data: Array, node: ir.Node, drawn: _Drawn
) -> npt.NDArray[np.float32]:
    """Return what the layer multiplies with its weight, as [positions, inputs]."""
    if node.op_type != "Conv":
        moved = np.moveaxis(data, layer.data_axis, -1)
        rows = moved.reshape(-1, moved.shape[-1])
        chosen = drawn.of(len(rows), max(len(data), 1))
        return np.ascontiguousarray(rows[chosen], dtype=np.float32)
    return _patches(data, node, _shape(layer, node)[2:], drawn)


def _patches(
    data: Array, node: ir.Node, kernel: tuple[int, ...], drawn: _Drawn
) -> npt.NDArray[np.float32]:
    """Return the patches [positions, channels and kernel] that a convolution reads.

    Where the padding follows from the shape (``auto_pad``) it is taken as centered: that is at
    most one position off, at the border.
    """
    rank = len(kernel)
    dilations = node.attributes.get_ints("dilations", [1] * rank)
    strides = node.attributes.get_ints("strides", [1] * rank)
    reach = [(size - 1) * by + 1 for size, by in zip(kernel, dilations, strict=True)]
    pads = list(node.attributes.get_ints("pads", [0] * (2 * rank)))
    if node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME"):
        pads = [size // 2 for size in reach] * 2
    around = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    padded = np.pad(data, around)
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, reach, axis=tuple(range(2, 2 + rank))
    )
    steps = [
        slice(None),
        slice(None),
        *(slice(None, None, by) for by in (*strides, *dilations)),
    ]
    spaced = windows[tuple(steps)]
    # [samples, channels, positions ..., kernel ...] to [positions, samples, channels, kernel]
    count = int(np.prod(spaced.shape[2 : 2 + rank]))
    chosen = np.unravel_index(drawn.of(count, 1), spaced.shape[2 : 2 + rank])
    rows = np.moveaxis(spaced, (0, 1), (rank, rank + 1))[chosen]
    return np.ascontiguousarray(rows.reshape(-1, data.shape[1] * int(np.prod(kernel))), "f4")
