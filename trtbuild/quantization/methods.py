"""From statistics to thresholds: every calibration method, computed from the same histogram."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtbuild.quantization.ranges import BINS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from trtbuild.quantization.ranges import TensorStatistics

PERCENTILES = ("percentile-99.9", "percentile-99.99", "percentile-99.999")

METHODS = ("minmax", *PERCENTILES, "entropy", "mse")
"""Every method, by the name that reports use; ``minmax`` first, since others must beat it."""

_LEVELS = 128
"""Magnitudes that int8 can tell apart; the number of merged bins in the KL search."""

_STRIDE = 8
"""Distance of the thresholds that the KL search tries first."""

_CANDIDATES = 256
"""Thresholds that the search for the least squared error tries."""


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
    search: dict[str, Callable[[TensorStatistics, float], float]] = {
        "entropy": _entropy,
        "mse": _mse,
    }
    return search[method](statistics, steps)


def _percentile(statistics: TensorStatistics, percent: float) -> float:
    """Return the upper edge of the bin in which ``percent`` % of all magnitudes are reached."""
    cumulated = np.cumsum(statistics.counts)
    wanted = cumulated[-1] * percent / 100
    index = int(np.searchsorted(cumulated, wanted))
    return min((index + 1) * statistics.width, statistics.amax)


def _entropy(statistics: TensorStatistics, steps: float) -> float:
    """Return the threshold of least Kullback-Leibler divergence.

    TensorRT's algorithm (S. Migacz, "8-bit Inference with TensorRT", GTC 2017) over 2,048
    bins: clipped values are added to the last bin kept, the kept bins are merged into 128
    levels, and each level is spread over those of its bins that were not empty. Every eighth
    threshold and the largest are tried, then all between the neighbors of the best. ``steps``
    does not matter: the algorithm is defined for 128 levels.
    """
    del steps
    counts = statistics.counts.astype(np.float64)
    counts[0] = 0.0  # values of 0 are exact at any threshold; TensorRT leaves them out too
    last = int(np.flatnonzero(statistics.counts)[-1]) + 1
    last = max(last, _LEVELS)
    # Clipping nothing is a candidate too: below it nothing may be left to compare.
    coarse = _least_divergence(counts, (*range(_LEVELS, last, _STRIDE), last))
    fine = range(max(coarse - _STRIDE, _LEVELS), min(coarse + _STRIDE, last) + 1)
    return min(_least_divergence(counts, fine) * statistics.width, statistics.amax)


def _least_divergence(counts: npt.NDArray[np.float64], kept: Sequence[int]) -> int:
    return kept[int(np.argmin([_divergence(counts, number) for number in kept]))]


def _divergence(counts: npt.NDArray[np.float64], kept: int) -> float:
    """Return KL(P, Q) in nats of clipping after ``kept`` bins; infinite where P has no mass."""
    inside = counts[:kept]
    reference = inside.copy()
    reference[-1] += counts[kept:].sum()
    total = reference.sum()
    if total == 0:
        return float("inf")
    edges = np.arange(_LEVELS) * kept // _LEVELS
    occupied = inside > 0
    mass = np.add.reduceat(inside, edges)
    number = np.add.reduceat(occupied.astype(np.float64), edges)
    level = np.repeat(
        np.divide(mass, number, out=np.zeros(_LEVELS), where=number > 0),
        np.diff(np.append(edges, kept)),
    )
    quantized = np.where(occupied, level, 0.0)
    if quantized.sum() == 0:
        return float("inf")
    p = reference / total
    q = quantized / quantized.sum()
    where = p > 0
    smoothed = np.maximum(q[where], np.finfo(np.float64).tiny)
    return float(np.sum(p[where] * np.log(p[where] / smoothed)))


def _mse(statistics: TensorStatistics, steps: float) -> float:
    """Return the threshold of least mean squared error of rounding and clipping together.

    Each bin stands for its center, the first for 0, since that is where the zeros of a ReLU
    are and they are exact.
    """
    used = np.flatnonzero(statistics.counts)
    counts = statistics.counts[used].astype(np.float64)
    centers = np.where(used == 0, 0.0, (used + 0.5) * statistics.width)
    first = max(statistics.amax / BINS * 8, statistics.width)
    thresholds = np.linspace(first, statistics.amax, _CANDIDATES)
    errors = [_squared_error(centers, counts, t, t / steps) for t in thresholds]
    return float(thresholds[int(np.argmin(errors))])


def _squared_error(
    centers: npt.NDArray[np.float64],
    counts: npt.NDArray[np.float64],
    threshold: float,
    step: float,
) -> float:
    rounded = np.minimum(np.rint(centers / step) * step, threshold)
    return float(counts @ (centers - rounded) ** 2)
