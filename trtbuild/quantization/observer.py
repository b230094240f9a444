"""Accumulate the statistics of tensors over a stream of arrays, in constant memory."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from trtbuild.quantization.kernel import ZERO_EXPONENT, accumulate, grow
from trtbuild.quantization.ranges import BINS, TensorStatistics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy.typing as npt

    from trtbuild.quantization.ranges import Ranges

_PIECE = 1 << 18
"""Values that one thread counts at once: 0.2 ms, 1 MiB."""

_FEW = 1 << 16
"""Values that are counted before a second thread has begun."""


class NotFiniteError(ValueError):
    """The array holds NaN or infinity; the message says how many of which.

    ``tensor`` is the name of the first tensor with any, where several were observed.
    """

    def __init__(self, message: str, tensor: str = "") -> None:
        super().__init__(message)
        self.tensor = tensor


class Observer:
    """Extremes and histogram of everything that :meth:`update` was given.

    The histogram's range starts at the first magnitude and doubles as needed. Doubling merges
    neighboring bins exactly, because all ranges are powers of two: the result is the same, to
    the last bit, for any cut of the values into arrays and any order of those.
    """

    def __init__(self) -> None:
        self._minimum = math.inf
        self._maximum = -math.inf
        self._exponent = ZERO_EXPONENT
        self._counts = np.zeros(BINS, dtype=np.int64)

    def update(self, array: npt.NDArray[Any]) -> None:
        """Add the values of an array of floating-point numbers, any shape.

        Raises:
            NotFiniteError: a value is NaN or infinite.
        """
        for piece in _pieces(array):
            self.add(piece)

    def add(self, piece: npt.NDArray[Any]) -> None:
        """Add the values of a flat and contiguous array of fewer than 2 ** 32 numbers.

        Raises:
            NotFiniteError: a value is NaN or infinite.
        """
        # Narrower types are exact in float32, and have no arithmetic of their own here.
        wide = piece if piece.dtype in (np.float32, np.float64) else piece.astype(np.float32)
        finite, self._exponent, low, high = accumulate(wide, self._counts, self._exponent)
        if not finite:
            raise NotFiniteError(_not_finite(piece))
        self._minimum = min(self._minimum, low)
        self._maximum = max(self._maximum, high)

    def merge(self, other: TensorStatistics) -> None:
        """Add what another observer saw."""
        counts, exponent = other.counts.copy(), other.exponent
        if exponent > self._exponent:
            grow(self._counts, self._exponent, exponent)
            self._exponent = exponent
        elif exponent < self._exponent:
            grow(counts, exponent, self._exponent)
        self._counts += counts
        self._minimum = min(self._minimum, other.minimum)
        self._maximum = max(self._maximum, other.maximum)

    @property
    def empty(self) -> bool:
        """Whether nothing was seen."""
        return self._minimum > self._maximum

    def statistics(self) -> TensorStatistics:
        """Return what was seen so far.

        Raises:
            ValueError: nothing was seen.
        """
        if self.empty:
            raise ValueError("no values were observed")
        return TensorStatistics(
            minimum=self._minimum,
            maximum=self._maximum,
            exponent=self._exponent,
            counts=self._counts.copy(),
        )


class Observers:
    """The observers of many tensors, fed by several threads.

    Every thread has an observer of its own for every tensor, so nobody waits; merging them is
    exact, so nobody can tell who counted what.
    """

    def __init__(self, seen: Mapping[str, TensorStatistics]) -> None:
        self._seen = dict(seen)
        self._names = dict.fromkeys(seen)
        self._threads = _processors()
        self._own: list[dict[str, Observer]] = [{} for _ in range(self._threads)]
        self._pool = ThreadPoolExecutor(self._threads)
        Observer().add(
            np.zeros(1, np.float32)
        )  # loads the compiled loop, before the clock runs

    def update(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add the values of an array of each tensor; all threads are done on return.

        Raises:
            NotFiniteError: a value is NaN or infinite; ``tensor`` says where.
        """
        try:
            self._update(arrays)
        except NotFiniteError as error:
            # Of all that is not finite the first tensor is told, whichever thread was first.
            told = ((name, _not_finite(array)) for name, array in arrays.items())
            name, text = next((name, text) for name, text in told if text)
            raise NotFiniteError(text, name) from error

    def statistics(self) -> Ranges:
        """Return what was seen so far of each tensor that had any values, in their order."""
        counted = self._seen.keys() | {name for own in self._own for name in own}
        return {name: self._merged(name) for name in self._names if name in counted}

    def _update(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._names.update(dict.fromkeys(arrays))
        pieces = [(name, part) for name, array in arrays.items() for part in _pieces(array)]
        if sum(part.size for _, part in pieces) <= _FEW:
            self._count(pieces, self._own[0])
            return
        # Large ones first: the small ones then even out what the threads have left to do.
        pieces.sort(key=lambda item: -item[1].size)
        queue = iter(pieces)  # next() of a list's iterator is atomic
        work = [self._pool.submit(self._count, queue, own) for own in self._own]
        for each in work:
            each.result()

    def _merged(self, name: str) -> TensorStatistics:
        total = Observer()
        if name in self._seen:
            total.merge(self._seen[name])
        for own in self._own:
            if name in own:
                total.merge(own[name].statistics())
        return total.statistics()

    @staticmethod
    def _count(
        pieces: Iterable[tuple[str, npt.NDArray[Any]]], own: dict[str, Observer]
    ) -> None:
        for name, piece in pieces:
            own.setdefault(name, Observer()).add(piece)


def _not_finite(array: npt.NDArray[Any]) -> str:
    """Return how many values are NaN and infinite, an empty string if all are finite."""
    nan, inf = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    return f"{nan} NaN and {inf} infinite values" if nan or inf else ""


def _pieces(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    flat = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, flat.size, _PIECE):
        yield flat[start : start + _PIECE]


def _processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
