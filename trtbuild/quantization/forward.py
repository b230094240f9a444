"""The forward pass of calibration: one chunk of samples in, its inner tensors out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from trtbuild.backends.memory import return_large_blocks, rss_bytes
from trtbuild.backends.ort_observe import open_observed, write_optimized
from trtbuild.errors import UsageError
from trtbuild.graph.observe import add_outputs, expose
from trtbuild.quantization import chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from trtbuild.backends.ort_observe import Observed
    from trtbuild.batches import Array, Batch
    from trtbuild.engine import TensorSpec
    from trtbuild.graph import Graph

_LARGEST_CHUNK = 32
_CHUNK_BYTES = 192 << 20
"""What the observed tensors of one chunk may hold: four samples of ResNet-50, with which the
forward pass is as fast as with eight (docs/benchmarks.md has what memory that takes)."""

_MIB = 1 << 20


class Forward:
    """A graph that runs chunks of samples and hands out ``tensors``.

    ONNX Runtime optimizes the graph once, with all of them as outputs. What runs then is that
    very graph, or the part of it that some of them need: which tensors are handed out at a
    time changes nothing in what is computed.
    """

    def __init__(self, graph: Graph, tensors: tuple[str, ...], work: Path) -> None:
        self._graph = graph
        self._inputs = tuple(spec.name for spec in graph.inputs)
        self._tensors = tuple(name for name in tensors if name not in self._inputs)
        self._work = work
        self._optimized = work / "optimized.onnx"
        self._specs: dict[str, TensorSpec] = {}
        self._open: tuple[tuple[str, ...], Observed, dict[str, str]] | None = None
        self._bounded = False
        self._room_bytes = 0
        self._fixed = chunks.fixed_size(graph)
        if self._tensors:
            observed = add_outputs(graph, self._tensors, work / "observed.onnx")
            outputs = write_optimized(observed, self._optimized)
            self._specs = {spec.name: spec for spec in outputs}

    def chunk_size(self, samples: Batch) -> int:
        """Return how many samples of this shape run at once.

        The model's own batch size, or a power of two that follows from the shapes alone, since
        kernels may add in another order for another number of rows.
        """
        if self._fixed is not None:
            return self._fixed
        size, one_bytes = _LARGEST_CHUNK, sum(self._bytes(samples, 1).values())
        while size > 1 and size * one_bytes > _CHUNK_BYTES:
            size //= 2
        return size

    def open(self) -> None:
        """Open the session now, and not with the first chunk."""
        if self._tensors:
            self._ready(self._tensors)

    def limit(self, chunk: Batch, memory_mib: int) -> None:
        """Keep the process below ``memory_mib`` from now on, ``chunk`` being what will come.

        Raises:
            UsageError: it cannot be done with so little; the message says what is needed.
        """
        sizes = self._bytes(chunk, chunks.samples(chunk))
        if not sizes:
            return
        return_large_blocks()
        # The last tensor alone: what the forward pass needs, all but nothing handed out. A
        # session that is not frugal still holds that when it has run.
        self._outputs((self._tensors[-1],), chunk)
        base_bytes, largest = rss_bytes(), max(sizes.values())
        self._open, self._bounded = None, True
        self._room_bytes = memory_mib * _MIB - base_bytes
        if self._room_bytes < largest:
            needed = math.ceil((base_bytes + largest) / _MIB * 1.05)
            raise UsageError(
                f"--calib-memory {memory_mib}: the forward pass of one chunk and its largest "
                f"tensor alone need {needed} MiB. Give at least that"
            )

    def run(self, chunk: Batch, size: int) -> Iterator[dict[str, Array]]:
        """Yield the tensors of the samples of a chunk, some at a time: by name, any order.

        Let go of each dict before the next. A chunk shorter than ``size`` is filled up, and
        what was filled up is not handed out. Tensors that do not have the samples along their
        first axis then come from a run of the short chunk, unless the model has one batch size.
        """
        yield {name: chunk[name] for name in self._inputs}
        short = bool(size) and chunks.is_short(chunk, size)
        full = chunks.filled(chunk, size) if short else chunk
        count = chunks.samples(chunk)
        groups = self._groups(full)
        if self._open is not None and groups and self._open[0] == groups[-1]:
            groups.reverse()
        for group in groups:
            if not short:
                yield self._outputs(group, full)
            elif self._fixed:
                found = self._outputs(group, full)
                yield {n: a[:count] if a.shape[:1] == (size,) else a for n, a in found.items()}
            else:
                yield from self._short(group, chunk, full)

    def _short(
        self, group: tuple[str, ...], chunk: Batch, full: Batch
    ) -> Iterator[dict[str, Array]]:
        count, size = chunks.samples(chunk), chunks.samples(full)
        shapes = {name: array.shape for name, array in self._outputs(group, chunk).items()}
        found = self._outputs(group, full)
        cut = {
            name: array[:count]
            for name, array in found.items()
            if array.shape[:1] == (size,) and shapes[name] == (count, *array.shape[1:])
        }
        rest = tuple(name for name in group if name not in cut)
        del found
        yield cut
        del cut
        if rest:
            found = self._outputs(group, chunk)
            yield {name: found[name] for name in rest}

    def _outputs(self, group: tuple[str, ...], chunk: Batch) -> dict[str, Array]:
        session, names = self._ready(group)
        inputs = {spec.name: np.ascontiguousarray(chunk[spec.name]) for spec in session.inputs}
        outputs = session.run(inputs)
        return {tensor: outputs[name] for tensor, name in names.items()}

    def _ready(self, group: tuple[str, ...]) -> tuple[Observed, dict[str, str]]:
        """Return the session that hands out ``group``, and its output of each tensor."""
        if self._open is None or self._open[0] != group:
            self._open = None  # its memory first
            path = self._work / "exposed.onnx"
            names = expose(self._optimized, group, path)
            session = open_observed(path, optimized=True, frugal=self._bounded)
            self._open = group, session, names
        return self._open[1:]

    def _groups(self, chunk: Batch) -> list[tuple[str, ...]]:
        """Return the tensors that are handed out together: all, or what there is room for."""
        if not self._room_bytes:
            return [self._tensors] if self._tensors else []
        groups: list[list[str]] = [[]]
        left = self._room_bytes
        for name, size_bytes in self._bytes(chunk, chunks.samples(chunk)).items():
            if groups[-1] and size_bytes > left:
                groups.append([])
                left = self._room_bytes
            groups[-1].append(name)
            left -= size_bytes
        return [tuple(group) for group in groups]

    def _bytes(self, samples: Mapping[str, Array], count: int) -> dict[str, int]:
        """Return about how large each tensor is for ``count`` of ``samples``."""
        known: dict[str, int] = {}
        for spec in self._graph.inputs:
            shape = samples[spec.name].shape
            named = zip(spec.shape, shape, strict=True)
            known.update({n: s for n, s in named if isinstance(n, str) and n != "?"})
        first = {spec.shape[0] for spec in self._graph.inputs if spec.shape}
        known.update({name: count for name in first if isinstance(name, str)})
        others = [s for array in samples.values() for s in array.shape[1:]]
        unknown = max(others, default=1)
        sizes = {}
        for name in self._tensors:
            spec = self._specs[name]
            elements = 1
            for axis, size in enumerate(spec.shape):
                guess = unknown if axis else count
                elements *= known.get(size, guess) if isinstance(size, str) else size
            sizes[name] = elements * np.dtype(spec.dtype).itemsize
        return sizes
