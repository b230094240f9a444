"""Run a graph over calibration data once and collect the statistics of its inner tensors."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from trtbuild.errors import DataError
from trtbuild.quantization import chunks
from trtbuild.quantization.forward import Forward
from trtbuild.quantization.observer import NotFiniteError, Observers
from trtbuild.quantization.progress import Progress, load_progress, save_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from trtbuild.batches import Array, Batch
    from trtbuild.graph import Graph
    from trtbuild.quantization.ranges import Ranges

VERSION = 3
"""Part of the key of ranges; raised when the collector starts to give other statistics."""

Infinities = Literal["refuse", "leave out"]
"""What infinite values mean: an error, or nothing."""


class Checkpoint(Protocol):
    """Where the progress of one calibration survives a kill."""

    def load(self) -> bytes | None:
        """Return what was saved last, if anything."""

    def save(self, data: bytes) -> None:
        """Replace what was saved, all or nothing."""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """How to collect; only ``infinities`` changes the statistics.

    With ``infinities="leave out"`` infinite values do not count, as those of attention masks
    must not when all tensors of a graph are scanned; a tensor of nothing else has no
    statistics. ``work`` is a folder for the observed graph. ``progress`` is called with the
    number of samples seen so far. ``memory_mib`` bounds the memory of the process: where not
    all tensors fit, the graph runs several times. ``checkpoint`` is where an interrupted
    collection goes on; it is saved every ``save_every_s`` seconds, in some milliseconds.
    """

    work: Path
    progress: Callable[[int], None]
    infinities: Infinities = "refuse"
    memory_mib: int | None = None
    checkpoint: Checkpoint | None = None
    save_every_s: float = 5.0


def calibrate(
    graph: Graph, tensors: tuple[str, ...], batches: Iterable[Batch], how: Collection
) -> Ranges:
    """Return the statistics of ``tensors`` of ``graph`` over all samples of ``batches``.

    One pass, one chunk of samples at a time: memory does not grow with the number of samples.
    Samples are regrouped into chunks whose size follows from graph and shapes, the last one
    filled up with copies that are not counted, so the result does not depend on how the data
    was cut into batches. Where inputs have different sizes along their first axis there are no
    samples, and batches run as they are. After an interruption the same ``batches`` are read
    again, and those that were counted are skipped.

    Raises:
        DataError: there is no data, the graph fails on it, or a tensor gets NaN or infinite
            values; the message names the tensor and the samples.
        UsageError: the memory is not enough for one tensor at a time.
    """
    done = load_progress(how.checkpoint.load()) if how.checkpoint else Progress()
    forward = Forward(graph, tensors, how.work)
    observers = Observers(done.ranges)
    if how.memory_mib is None:
        forward.open()
    seen, saved = 0, time.monotonic()
    sized = chunks.sized(batches, graph, forward.chunk_size)
    for number, (chunk, size) in enumerate(sized):
        count = chunks.samples(chunk)
        seen += count
        if number < done.chunks:
            continue
        if how.memory_mib is not None and number == done.chunks:
            short = chunks.is_short(chunk, size)
            with chunks.located(seen - count, count):
                forward.limit(chunks.filled(chunk, size) if short else chunk, how.memory_mib)
        for arrays in _run(forward, chunk, size, seen - count):
            wanted = {name: array for name, array in arrays.items() if name in tensors}
            if how.infinities == "leave out":
                wanted = {name: _finite(array) for name, array in wanted.items()}
            _observe(observers, wanted, seen - count, count)
            del arrays, wanted  # before the next ones are made
        how.progress(seen)
        if how.checkpoint and time.monotonic() - saved >= how.save_every_s:
            state = Progress(chunks=number + 1, ranges=observers.statistics())
            how.checkpoint.save(save_progress(state))
            saved = time.monotonic()
    if not seen:
        raise DataError("the calibration data is empty: expected at least one sample")
    found = observers.statistics()
    return {name: found[name] for name in tensors if name in found}


def _run(forward: Forward, chunk: Batch, size: int, first: int) -> Iterator[dict[str, Array]]:
    with chunks.located(first, chunks.samples(chunk)):
        yield from forward.run(chunk, size)


def _finite(array: Array) -> Array:
    infinite = np.isinf(array)
    return array[~infinite] if infinite.any() else array


def _observe(observers: Observers, arrays: Batch, first: int, count: int) -> None:
    """Count arrays of the ``count`` samples from number ``first`` on.

    Raises:
        DataError: a value is NaN or infinite.
    """
    try:
        observers.update(arrays)
    except NotFiniteError as error:
        array = arrays[error.tensor]
        bad = np.arange(count)
        if array.shape[:1] == (count,):
            bad = np.flatnonzero(~np.isfinite(array.reshape(count, -1)).all(axis=1))
        where = f"samples {first + bad[0]} to {first + bad[-1]}"
        if bad.size == 1:
            where = f"sample {first + bad[0]}"
        raise DataError(
            f"calibration {where}: {error.tensor!r} has {error}. Remove what is wrong with the "
            f"data, or correct the model where it overflows"
        ) from error
