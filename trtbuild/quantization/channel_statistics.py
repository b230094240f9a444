"""Magnitude and mean of every channel of a graph's tensors, computed by its own runtime."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtbuild.backends.ort_session import open_graph
from trtbuild.errors import DataError
from trtbuild.graph.reduce import with_channel_statistics
from trtbuild.quantization import chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from trtbuild.backends import Session
    from trtbuild.batches import Array, Batch
    from trtbuild.graph import Graph
    from trtbuild.graph.reduce import ChannelNames

    Doubles = npt.NDArray[np.float64]

VERSION = 1
"""Part of the key of channel statistics; raised when they start to be others."""


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """What every channel of one tensor holds; both float64, [channels].

    ``amax`` is the largest magnitude, ``mean`` the mean over all samples and positions.
    """

    amax: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]


def channel_statistics(
    graph: Graph,
    tensors: Mapping[str, int],
    batches: Iterable[Batch],
    work: Path,
    progress: Callable[[int], None],
) -> dict[str, ChannelStatistics]:
    """Return the statistics of ``tensors`` over all samples, per channel.

    ``tensors`` maps each tensor to the axis of its channels, negative ones counted from the
    end. No tensor leaves the runtime, only [samples, channels] numbers of it. The graph that
    computes them is written into the folder ``work``. ``progress`` is called with the number of
    samples seen so far.

    Raises:
        ValueError: a name is no tensor of the main graph, its rank is not known, or the axis is
            not one of its axes.
        DataError: there is no data, or a channel gets NaN or infinite values; the message names
            the tensor and the samples.
    """
    reduced, names = with_channel_statistics(graph, tensors, work / "channels.onnx")
    session = open_graph(reduced.path, fused=True)
    fixed = chunks.fixed_size(graph)
    size, seen = chunks.CHUNK if fixed is None else fixed, 0
    sums: dict[str, _Sum] = {}
    for chunk in chunks.chunked(batches, graph, size):
        count = chunks.samples(chunk)
        with chunks.located(seen, count):
            found = _rows(session, names, chunk, size)
        for tensor, rows in found.items():
            if not (np.isfinite(rows.mean).all() and np.isfinite(rows.amax).all()):
                raise DataError(
                    f"calibration samples {seen} to {seen + count - 1}: {tensor!r} has NaN or "
                    f"infinite values. Remove these samples, or correct the model where it "
                    f"overflows"
                )
            sums.setdefault(tensor, _Sum(rows.mean.shape[1])).add(rows)
        seen += count
        progress(seen)
    if not seen:
        raise DataError("the calibration data is empty: expected at least one sample")
    return {tensor: sums[tensor].statistics() for tensor in tensors}


def to_bytes(statistics: Mapping[str, ChannelStatistics]) -> bytes:
    """Return ``statistics`` as the bytes of a file; equal ones as equal bytes."""
    arrays: list[Doubles] = []
    for name in sorted(statistics):
        arrays += [statistics[name].amax, statistics[name].mean]
    names = np.array(sorted(statistics), dtype=np.str_)
    file = io.BytesIO()
    lengths = np.array([len(array) for array in arrays], dtype=np.int64)
    values = np.concatenate([*arrays, np.zeros(0)])
    np.savez_compressed(file, names=names, lengths=lengths, values=values)
    return file.getvalue()


def from_bytes(data: bytes) -> dict[str, ChannelStatistics]:
    """Return the statistics that :func:`to_bytes` made bytes of."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        names, lengths, values = file["names"], file["lengths"], file["values"]
    arrays = np.split(values, np.cumsum(lengths))
    return {
        str(name): ChannelStatistics(amax=arrays[2 * index], mean=arrays[2 * index + 1])
        for index, name in enumerate(names)
    }


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Reductions [rows, channels], and how many values of a channel stand behind a row."""

    amax: Array
    mean: Array
    values: int


class _Sum:
    """A running sum in two float64 per channel, so that the order of samples cannot be seen.

    The second holds what rounding took from the first (Knuth's TwoSum): the error is about
    2 ** -106 of the largest partial sum, far below the last bit of the mean.
    """

    def __init__(self, channels: int) -> None:
        self._amax = np.zeros(channels)
        self._high = np.zeros(channels)
        self._low = np.zeros(channels)
        self._values = 0

    def add(self, rows: _Rows) -> None:
        """Add all rows."""
        for row in rows.mean.astype(np.float64) * rows.values:
            total = self._high + row
            part = total - self._high
            self._low += (self._high - (total - part)) + (row - part)
            self._high = total
        self._amax = np.maximum(self._amax, rows.amax.max(axis=0, initial=0.0))
        self._values += len(rows.mean) * rows.values

    def statistics(self) -> ChannelStatistics:
        """Return what was seen so far; the mean of nothing is 0."""
        mean = (self._high + self._low) / max(self._values, 1)
        return ChannelStatistics(amax=self._amax, mean=mean)


def _rows(
    session: Session, names: Mapping[str, ChannelNames], chunk: Batch, size: int
) -> dict[str, _Rows]:
    """Return the reductions of the samples of a chunk, without those that fill it up.

    Tensors that do not have the samples along their first axis come from a run of the short
    chunk, unless the model has one batch size only.
    """
    if not chunks.is_short(chunk, size):
        outputs = session.run(chunk)
        return {tensor: _of(outputs, name) for tensor, name in names.items()}
    full = session.run(chunks.filled(chunk, size))
    fixed = any(isinstance(spec.shape[0], int) for spec in session.inputs)
    short = full if fixed else session.run(chunk)
    count, rows = chunks.samples(chunk), {}
    for tensor, name in names.items():
        of_samples = len(full[name.mean]) == size and full[name.shape][0] == size
        cut = fixed or (short[name.shape][0] == count)
        every = _of(full if of_samples and cut else short, name)
        rows[tensor] = _Rows(
            amax=every.amax[:count] if of_samples and cut else every.amax,
            mean=every.mean[:count] if of_samples and cut else every.mean,
            values=every.values,
        )
    return rows


def _of(outputs: Mapping[str, Array], name: ChannelNames) -> _Rows:
    mean, elements = outputs[name.mean], int(outputs[name.shape].prod())
    values = elements // max(mean.size, 1)
    return _Rows(amax=outputs[name.amax], mean=mean, values=values)
