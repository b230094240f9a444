"""Run calibration samples in chunks of one size, however the provider cut its batches."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from trtbuild.batches import rechunk, rechunk_by
from trtbuild.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from trtbuild.batches import Array, Batch
    from trtbuild.graph import Graph

CHUNK = 8
"""Samples in one forward pass where the model leaves it open."""


def fixed_size(graph: Graph) -> int | None:
    """Return the batch size of all inputs, 0 if they differ, None if it is open."""
    first = {spec.shape[0] if spec.shape else 0 for spec in graph.inputs}
    sizes = [size for size in first if isinstance(size, int)]
    if not sizes:
        return None
    return sizes[0] if len(first) == 1 else 0


def chunked(batches: Iterable[Batch], graph: Graph, size: int) -> Iterator[Batch]:
    """Yield the samples in chunks of ``size``; batches as they are where it is 0."""
    names = [spec.name for spec in graph.inputs]
    if size:
        return rechunk(batches, names, size)
    return ({name: batch[name] for name in names} for batch in batches)


def sized(
    batches: Iterable[Batch], graph: Graph, size_of: Callable[[Batch], int]
) -> Iterator[tuple[Batch, int]]:
    """Yield chunks of ``size_of`` their samples, and that size; 0 for batches as they are."""
    names = [spec.name for spec in graph.inputs]
    if fixed_size(graph) == 0:
        return (({name: batch[name] for name in names}, 0) for batch in batches)
    return rechunk_by(batches, names, size_of)


def samples(chunk: Mapping[str, Array]) -> int:
    """Return how many samples a chunk holds; one that has no samples counts as one."""
    return max((array.shape[0] for array in chunk.values() if array.ndim), default=1)


def is_short(chunk: Mapping[str, Array], size: int) -> bool:
    """Return whether a chunk has samples, and fewer than ``size``."""
    lengths = {array.shape[:1] for array in chunk.values()}
    return len(lengths) == 1 and lengths != {()} and samples(chunk) < size


@contextmanager
def located(first: int, count: int) -> Iterator[None]:
    """Name the ``count`` calibration samples from number ``first`` on where they are wrong.

    Raises:
        DataError: the one that was raised inside, with the samples before it.
    """
    try:
        yield
    except DataError as error:
        raise DataError(
            f"calibration samples {first} to {first + count - 1}: {error}"
        ) from error


def filled(chunk: Mapping[str, Array], size: int) -> dict[str, Array]:
    """Return a short chunk filled up to ``size`` with copies of its last sample.

    Kernels may add in another order for another number of rows: a full chunk keeps the
    arithmetic of every sample the same.
    """
    missing = size - samples(chunk)
    return {
        name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
        for name, array in chunk.items()
    }
