"""Thresholds for FP8: what clips, rounds and vanishes when magnitudes become E4M3 numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtbuild.quantization import methods
from trtbuild.quantization.formats import E4M3

if TYPE_CHECKING:
    from trtbuild.quantization.ranges import TensorStatistics

METHODS = ("minmax", *methods.PERCENTILES, "mse")
"""The methods that mean something for numbers whose steps grow with them. ``entropy`` merges
bins into 128 equal levels, which FP8 has not."""

_SPAN = 2.0 ** -np.linspace(0, 4, 129)
"""Parts of the largest magnitude that the search tries. A power of two moves every step with
the threshold: below 1/16 only what is clipped changes."""


def candidates(method: str) -> tuple[str, ...]:
    """Return the methods that a recipe's word stands for, none for ``entropy``."""
    if method == "auto":
        return METHODS
    return tuple(name for name in methods.candidates(method) if name in METHODS)


def fp8_amax(statistics: TensorStatistics, method: str) -> float:
    """Return the magnitude that ``method`` maps to 448, 0 for a tensor of zeros.

    ``mse`` takes the threshold of least mean squared error over E4M3's own numbers.
    """
    if method != "mse" or statistics.amax == 0:
        return methods.amax(statistics, method, E4M3.largest)
    used = np.flatnonzero(statistics.counts)
    counts = statistics.counts[used].astype(np.float64)
    centers = np.where(used == 0, 0.0, (used + 0.5) * statistics.width)
    tried = statistics.amax * _SPAN
    errors = []
    for threshold in tried:
        scale = threshold / E4M3.largest
        errors.append(counts @ (centers - E4M3.nearest(centers / scale) * scale) ** 2)
    return float(tried[int(np.argmin(errors))])
