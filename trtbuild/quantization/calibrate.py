"""Run a graph over calibration data once and collect the statistics of its inner tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from trtbuild.backends.ort_session import open_graph
from trtbuild.batches import rechunk
from trtbuild.errors import DataError
from trtbuild.graph.observe import with_outputs
from trtbuild.quantization.observer import NotFiniteError, Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from trtbuild.backends import Session
    from trtbuild.batches import Array, Batch
    from trtbuild.graph import Graph
    from trtbuild.quantization.ranges import Ranges

VERSION = 1
"""Part of the key of ranges; raised when the collector starts to give other statistics."""

Infinities = Literal["refuse", "leave out"]
"""What infinite values mean: an error, or nothing."""

_CHUNK = 8
"""Samples in one forward pass, however the provider cuts its batches."""


def calibrate(  # noqa: PLR0913, PLR0917  the sixth is for one caller and has a default
    graph: Graph,
    tensors: tuple[str, ...],
    batches: Iterable[Batch],
    work: Path,
    progress: Callable[[int], None],
    infinities: Infinities = "refuse",
) -> Ranges:
    """Return the statistics of ``tensors`` of ``graph`` over all samples of ``batches``.

    One pass, one chunk of samples at a time: memory does not grow with the number of samples.
    Samples are regrouped into chunks of one size, the last one filled up with copies that are
    not counted, so the result does not depend on how the data was cut into batches. Where
    inputs have different sizes along their first axis there are no samples, and batches run as
    they are. The observed graph is written into the folder ``work``. ``progress`` is called
    with the number of samples seen so far.

    With ``infinities="leave out"`` infinite values do not count, as those of attention masks
    must not when a graph is scanned for overflow; a tensor of nothing else has no statistics.

    Raises:
        DataError: there is no data, or a tensor gets NaN or infinite values; the message names
            the tensor and the samples.
    """
    observers = {name: Observer() for name in tensors}
    inner = tuple(name for name in tensors if name not in {v.name for v in graph.inputs})
    session = open_graph(with_outputs(graph, inner, work / "observed.onnx").path, fused=True)
    names = [spec.name for spec in graph.inputs]
    size, seen = _chunk_size(graph), 0
    chunks = rechunk(batches, names, size) if size else _only(batches, names)
    for chunk in chunks:
        count = _samples(chunk)
        observed = {**chunk, **_run(session, chunk, size)}
        for name, observer in observers.items():
            array = observed[name]
            if infinities == "leave out":
                array = array[~np.isinf(array)]
            _observe(observer, array, f"samples {seen} to {seen + count - 1}: {name!r}")
        seen += count
        progress(seen)
    if not seen:
        raise DataError("the calibration data is empty: expected at least one sample")
    found = ((name, observer) for name, observer in observers.items() if not observer.empty)
    return {name: observer.statistics() for name, observer in found}


def _observe(observer: Observer, array: Array, what: str) -> None:
    try:
        observer.update(array)
    except NotFiniteError as error:
        raise DataError(
            f"calibration {what} has {error}. Remove these samples, or correct the model where "
            f"it overflows"
        ) from error


def _chunk_size(graph: Graph) -> int:
    """Return the batch size that all inputs are fixed to, 8 if it is free, 0 if they differ."""
    first = {spec.shape[0] if spec.shape else 0 for spec in graph.inputs}
    sizes = [size for size in first if isinstance(size, int)]
    if not sizes:
        return _CHUNK
    return sizes[0] if len(first) == 1 else 0


def _only(batches: Iterable[Batch], names: list[str]) -> Iterator[Batch]:
    return ({name: batch[name] for name in names} for batch in batches)


def _samples(chunk: Mapping[str, Array]) -> int:
    return max((array.shape[0] for array in chunk.values() if array.ndim), default=1)


def _run(session: Session, chunk: Mapping[str, Array], size: int) -> dict[str, Array]:
    """Run a chunk that may be short; outputs have its own samples only.

    Kernels may add in another order for another number of rows: a full chunk keeps the
    arithmetic of every sample the same. Tensors that do not have the samples along their first
    axis come from a run of the short chunk, unless the model has one batch size only.
    """
    if not session.outputs:
        return {}
    lengths = {array.shape[:1] for array in chunk.values()}
    if len(lengths) != 1 or lengths == {()} or _samples(chunk) >= size:
        return session.run(chunk)
    count = _samples(chunk)
    full = session.run({name: _filled(array, size) for name, array in chunk.items()})
    cut = {
        name: array[:count] if array.shape[:1] == (size,) else array
        for name, array in full.items()
    }
    if any(isinstance(spec.shape[0], int) for spec in session.inputs):
        return cut
    short = session.run(chunk)
    return {
        name: array if array.shape == short[name].shape else short[name]
        for name, array in cut.items()
    }


def _filled(array: Array, size: int) -> Array:
    missing = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
