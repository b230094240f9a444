"""The observer in plain NumPy, which the compiled one must equal to the last bit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from trtbuild.quantization.ranges import BINS, TensorStatistics

if TYPE_CHECKING:
    import numpy.typing as npt

_PIECE = 1 << 20
"""Elements that are binned at once, so that temporaries stay small."""

_SINGLE_BYTES = 4
_SINGLE_LIMIT = float(np.finfo(np.float32).max)

_ZERO_EXPONENT = -1074
"""Exponent of the smallest float64: the histogram of a tensor that is 0 everywhere."""

_LOWEST_EXPONENT = -1000
"""Below any float32; lower ranges of float64 share this, so that 1 / width stays finite."""


class NumpyObserver:
    """Extremes and histogram of everything that :meth:`update` was given.

    The histogram's range starts at the first magnitude and doubles as needed. Doubling merges
    neighboring bins exactly, because all ranges are powers of two: the result is the same, to
    the last bit, for any cut of the values into arrays and any order of those.
    """

    def __init__(self) -> None:
        self._minimum = math.inf
        self._maximum = -math.inf
        self._exponent = _ZERO_EXPONENT
        self._counts = np.zeros(BINS, dtype=np.int64)

    def update(self, array: npt.NDArray[Any]) -> None:
        """Add the values of an array of floating-point numbers, any shape."""
        flat = array.reshape(-1)
        for start in range(0, flat.size, _PIECE):
            self._add(flat[start : start + _PIECE])

    def _add(self, piece: npt.NDArray[Any]) -> None:
        low, high = float(piece.min()), float(piece.max())
        # + 0.0 turns -0.0 into 0.0: which of them min() returns depends on the order.
        self._minimum = min(self._minimum, low + 0.0)
        self._maximum = max(self._maximum, high + 0.0)
        magnitude = max(abs(low), abs(high))
        if magnitude > 0:
            self._grow(max(math.frexp(magnitude)[1], _LOWEST_EXPONENT))
        if self._exponent == _ZERO_EXPONENT:
            self._counts[0] += piece.size
            return
        # A power of two, so the product is exact and truncation is the bin of every value.
        scale = math.ldexp(1.0, -self._exponent) * BINS
        exact = np.float32 if piece.dtype.itemsize <= _SINGLE_BYTES else np.float64
        wide = np.abs(piece.astype(np.float64 if scale > _SINGLE_LIMIT else exact))
        bins = np.multiply(wide, scale, out=wide).astype(np.intp)
        self._counts += np.bincount(bins, minlength=BINS)

    def _grow(self, exponent: int) -> None:
        """Widen the range to ``2 ** exponent``; a smaller one changes nothing."""
        doublings = exponent - self._exponent
        if doublings <= 0:
            return
        merged = np.zeros(BINS, dtype=np.int64)
        group = min(1 << min(doublings, BINS.bit_length() - 1), BINS)
        kept = BINS // group
        merged[:kept] = self._counts.reshape(kept, group).sum(axis=1)
        self._counts, self._exponent = merged, exponent

    def statistics(self) -> TensorStatistics:
        """Return what was seen so far."""
        return TensorStatistics(
            minimum=self._minimum,
            maximum=self._maximum,
            exponent=self._exponent,
            counts=self._counts.copy(),
        )
