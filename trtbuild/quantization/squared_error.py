"""The threshold of least mean squared error of rounding and clipping together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from trtbuild.quantization.ranges import BINS

if TYPE_CHECKING:
    import numpy.typing as npt

    from trtbuild.quantization.ranges import TensorStatistics

_CANDIDATES = 256
"""Thresholds that are tried, from 8 of the 2,048 parts of the range up to the largest value."""

_EQUAL = 1e-12
"""Errors this close, as parts of the sum of squares, are equal: what rounding leaves is less,
and may differ between processors. Of equals the least threshold is taken."""


def least_squared_error(statistics: TensorStatistics, steps: float) -> float:
    """Return the threshold, of ``steps`` quantization steps; some value is not 0.

    Each bin stands for its center, the first for 0, since that is where the zeros of a ReLU
    are and they are exact.
    """
    first = max(statistics.amax / BINS * 8, statistics.width)
    thresholds = np.linspace(first, statistics.amax, _CANDIDATES)
    # In halves of a bin's width, so that sums are exact.
    centers = 2 * np.arange(BINS, dtype=np.float64) + 1
    centers[0] = 0.0
    counts = statistics.counts.astype(np.float64)
    gains = _gains(counts, centers, thresholds / (statistics.width / 2), steps)
    equal = _EQUAL * float(np.sum(counts * centers**2))
    return float(thresholds[int(np.argmax(gains >= gains.max() - equal))])


def _gains(
    counts: npt.NDArray[np.float64],
    centers: npt.NDArray[np.float64],
    thresholds: npt.NDArray[np.float64],
    steps: float,
) -> npt.NDArray[np.float64]:
    """Return how much less the squared error is than if all became 0, by threshold.

    Whatever lies above half of a step rises to that step, from the one below: from u to v its
    squared error falls by (v - u)(2x - u - v). So only the number and the sum of the values
    above each half step count, and these are running sums of the histogram.
    """
    number = np.append(np.cumsum(counts[::-1])[::-1], 0.0)
    total = np.append(np.cumsum((counts * centers)[::-1])[::-1], 0.0)
    step = thresholds / steps
    levels = np.arange(math.ceil(steps))[:, np.newaxis]  # the last is the threshold itself
    lower = levels * step
    upper = np.minimum(lower + step, thresholds)
    upper[-1] = thresholds
    # Bin i has the center 2i + 1: the first above the half step b is the floor of (b + 1) / 2.
    above = np.clip((lower + (step / 2 + 1)).astype(np.intp) >> 1, 1, BINS)
    falls = (upper - lower) * (2 * total.take(above) - (upper + lower) * number.take(above))
    return np.asarray(falls.sum(axis=0), np.float64)
