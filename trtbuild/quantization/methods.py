"""From statistics to thresholds: every calibration method, computed from the same histogram."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtbuild.quantization.divergence import least_divergence
from trtbuild.quantization.squared_error import least_squared_error

if TYPE_CHECKING:
    from trtbuild.quantization.ranges import TensorStatistics

PERCENTILES = ("percentile-99.9", "percentile-99.99", "percentile-99.999")

METHODS = ("minmax", *PERCENTILES, "entropy", "mse")
"""Every method, by the name that reports use; ``minmax`` first, since others must beat it."""


def candidates(method: str) -> tuple[str, ...]:
    """Return the methods that a recipe's word stands for: one, several, or all for ``auto``."""
    if method == "auto":
        return METHODS
    return PERCENTILES if method == "percentile" else (method,)


def amax(statistics: TensorStatistics, method: str, steps: float) -> float:
    """Return the threshold of magnitude that ``method`` chooses, 0 for a tensor of zeros.

    ``steps`` is the number of quantization steps between 0 and the threshold: 127 for
    symmetric int8, up to 255 for uint8.
    """
    if statistics.amax == 0:
        return 0.0
    if method == "minmax":
        return statistics.amax
    if method in PERCENTILES:
        return _percentile(statistics, float(method.removeprefix("percentile-")))
    if method == "entropy":
        return _entropy(statistics)
    return least_squared_error(statistics, steps)


def _percentile(statistics: TensorStatistics, percent: float) -> float:
    """Return the upper edge of the bin in which ``percent`` % of all magnitudes are reached."""
    cumulated = np.cumsum(statistics.counts)
    wanted = cumulated[-1] * percent / 100
    index = int(np.searchsorted(cumulated, wanted))
    return min((index + 1) * statistics.width, statistics.amax)


def _entropy(statistics: TensorStatistics) -> float:
    """Return the upper edge of the bins that TensorRT's search for the least divergence keeps.

    The slides of TensorRT's algorithm stop half a bin further on. Values of 0 are exact at any
    threshold and are left out, with all of the first bin: else the zeros of a ReLU outweigh
    everything (NVIDIA's pytorch-quantization overwrites that bin for the same reason). The
    algorithm is defined for 128 levels, however many steps the threshold will have.
    """
    counts = statistics.counts.copy()
    counts[0] = 0
    return min(least_divergence(counts) * statistics.width, statistics.amax)
