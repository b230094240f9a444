"""Batches of real inputs: what a provider yields, and what every stage takes.

A batch is a dict of arrays by name. The names of the model's inputs are fed to the model; other
names (labels, for example) are for the metric only. Samples lie along the first axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]
Outputs = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A task metric: the mean of scores of independent units.

    ``score(outputs, batch)`` returns one score per unit (sample, pair, query ...) of the batch,
    shape [n], any n; the metric is the mean over all units of all batches, and the units are
    what a bootstrap resamples.
    """

    name: str
    higher_is_better: bool
    score: Callable[[Outputs, Batch], npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Provider:
    """Calibration and evaluation data of one model: disjoint, and the same at every call.

    ``name`` is what errors call it. Each function returns a fresh iterable of batches at every
    call, in the same order. ``metric`` is ``None`` where the data has none.
    """

    name: str
    calibration_batches: Callable[[], Iterable[Batch]]
    evaluation_batches: Callable[[], Iterable[Batch]]
    metric: Metric | None


def rechunk(batches: Iterable[Batch], names: Iterable[str], size: int) -> Iterator[Batch]:
    """Yield the same samples in batches of ``size``, whatever batches they came in.

    Only the arrays called ``names`` are kept. Samples of different shapes never share a batch.
    The last batch of each shape is as short as it must be. A batch whose arrays do not share
    the length of their first axis has no samples, and is yielded as it is; one of length 0 is
    left out. Memory: fewer than ``size`` samples of every shape that occurs.
    """
    return (chunk for chunk, _ in rechunk_by(batches, names, lambda _: size))


def rechunk_by(
    batches: Iterable[Batch], names: Iterable[str], size_of: Callable[[Batch], int]
) -> Iterator[tuple[Batch, int]]:
    """Yield batches as :func:`rechunk` does, each with the size that batches of its shape have.

    ``size_of`` tells that size from the first batch of each shape; it may look at the shapes
    of samples only. A batch without samples comes with 0.
    """
    wanted = tuple(names)
    sizes: dict[tuple[object, ...], int] = {}
    waiting: dict[tuple[object, ...], list[dict[str, Array]]] = {}
    for batch in batches:
        arrays = {name: batch[name] for name in wanted}
        lengths = {array.shape[:1] for array in arrays.values()}
        if len(lengths) != 1 or lengths == {()}:
            yield arrays, 0
            continue
        if lengths == {(0,)}:
            continue
        shapes: tuple[object, ...] = tuple(
            (array.shape[1:], array.dtype.str) for array in arrays.values()
        )
        if shapes not in sizes:
            sizes[shapes] = size_of(arrays)
        queue, size = waiting.setdefault(shapes, []), sizes[shapes]
        queue.append(arrays)
        while _length(queue) >= size:
            yield _take(queue, size), size
    for shapes, queue in waiting.items():
        if queue:
            yield _take(queue, _length(queue)), sizes[shapes]


def _length(queue: list[dict[str, Array]]) -> int:
    return sum(len(next(iter(arrays.values()))) for arrays in queue)


def _take(queue: list[dict[str, Array]], size: int) -> dict[str, Array]:
    """Remove the first ``size`` samples from ``queue`` and return them as one batch."""
    taken: list[dict[str, Array]] = []
    while size:
        arrays = queue.pop(0)
        length = len(next(iter(arrays.values())))
        if length > size:
            queue.insert(0, {name: array[size:] for name, array in arrays.items()})
            arrays = {name: array[:size] for name, array in arrays.items()}
            length = size
        taken.append(arrays)
        size -= length
    return {name: np.concatenate([arrays[name] for arrays in taken]) for name in taken[0]}
