"""The largest magnitudes of a graph's tensors, computed by the graph's own runtime."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trtbuild.backends.ort_session import open_graph
from trtbuild.errors import DataError
from trtbuild.graph.reduce import with_extremes
from trtbuild.quantization import chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from trtbuild.batches import Batch
    from trtbuild.graph import Graph

VERSION = 1
"""Part of the key of extremes; raised when they start to be others."""


def extremes(
    graph: Graph,
    tensors: tuple[str, ...],
    batches: Iterable[Batch],
    work: Path,
    progress: Callable[[int], None],
) -> dict[str, float]:
    """Return the largest finite magnitude of each of ``tensors`` over all samples.

    Infinities are left out, as those of attention masks must be when a graph is scanned for
    overflow; a tensor of nothing else has 0. No tensor leaves the runtime, only its extremes.
    The scanned graph is written into the folder ``work``. ``progress`` is called with the
    number of samples seen so far.

    Raises:
        DataError: there is no data, the graph fails on it, or a tensor gets a NaN; the
            message names the tensor and the samples.
    """
    reduced, names = with_extremes(graph, tensors, work / "extremes.onnx")
    session = open_graph(reduced.path, fused=True)
    size, seen = _size(graph), 0
    found = dict.fromkeys(tensors, 0.0)
    for chunk in chunks.chunked(batches, graph, size):
        count = chunks.samples(chunk)
        # Copies of a sample change no extreme.
        short = chunks.is_short(chunk, size)
        with chunks.located(seen, count):
            outputs = session.run(chunks.filled(chunk, size) if short else chunk)
        for tensor, name in names.items():
            if math.isnan(outputs[name.total].item()):
                raise DataError(
                    f"calibration samples {seen} to {seen + count - 1}: {tensor!r} has NaN "
                    f"values. Remove these samples, or correct the model where they arise"
                )
            found[tensor] = max(found[tensor], float(outputs[name.amax].item()))
        seen += count
        progress(seen)
    if not seen:
        raise DataError("the calibration data is empty: expected at least one sample")
    return found


def _size(graph: Graph) -> int:
    fixed = chunks.fixed_size(graph)
    return chunks.CHUNK if fixed is None else fixed
