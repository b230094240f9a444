"""The threshold of least Kullback-Leibler divergence: TensorRT's entropy calibration.

S. Migacz, "8-bit Inference with TensorRT", GTC 2017: for every number of kept bins from 128 on,
clipped values are added to the last bin kept (P), the kept bins are merged into 128 levels, and
each level is spread evenly over those of its bins that were not empty (Q). What keeps the
divergence of P from Q least is the threshold, of equals the largest.

A bin contributes p log(p / q), and q is the same for all of a level. So the sum over the bins
is one of running sums of c log c, less one term per level, and a level is a run of 1 to 16 bins
wherever it starts: the terms of all runs are computed once, and each of the 1,921 candidates
adds up 128 of them. That is the whole search in the time that ten candidates take bin by bin.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from trtbuild.quantization.ranges import BINS

if TYPE_CHECKING:
    import numpy.typing as npt

    Doubles = npt.NDArray[np.float64]

LEVELS = 128
"""Magnitudes that int8 can tell apart; the least number of bins that is kept."""

_EQUAL_NATS = 1e-12
"""Divergences this close are equal: a hundred times what rounding leaves, which differs between
processors with their ``log``. Of equals the most bins are kept."""


def least_divergence(counts: npt.NDArray[np.int64]) -> int:
    """Return how many bins to keep, at most up to the last one with a count.

    ``counts`` are [2048], with values beyond the first bin.
    """
    last = max(int(np.flatnonzero(counts)[-1]) + 1, LEVELS)
    found = divergences(counts)[: last - LEVELS + 1]
    return LEVELS + int(np.flatnonzero(found <= found.min() + _EQUAL_NATS)[-1])


def divergences(counts: npt.NDArray[np.int64]) -> Doubles:
    """Return KL(P, Q) in nats of keeping 128, 129, ... 2048 bins, [1921].

    It is infinite where values are clipped into a bin that was empty, since P has them there
    and Q has nothing; and where more is clipped than kept: a lone bin at the bottom is like
    itself, divergence 0, and says nothing of all that lies above it.
    """
    inside = _running(counts)[LEVELS:]
    total = inside[-1]
    ends = np.arange(LEVELS - 1, BINS)
    final = counts[ends].astype(np.float64)
    clipped = total - inside
    log_mean, spread = _runs(counts)
    index = _runs_of_levels()
    # Of P: the sum of r log r, where the last bin kept has r = c + what is clipped.
    own = _running(_x_log_x(counts))[LEVELS - 1 : -1] + _x_log_x(final + clipped)
    of_levels = spread.take(index).sum(axis=0) + clipped * log_mean.take(index[-1])
    logs = np.log(np.maximum(inside, 1.0)) - np.log(total)
    result = np.asarray((own - of_levels) / total + logs, np.float64)
    result[(clipped > inside) | ((clipped > 0) & (final == 0))] = np.inf
    return result


def _runs(counts: npt.NDArray[np.int64]) -> tuple[Doubles, Doubles]:
    """Return log m and s log m of all runs of 1 to 16 bins, [16, 2048] by length and start.

    ``s`` is the sum of a run, ``m`` that over the number of its bins that are not empty. Both
    are 0 where all are, and where a run would not end within the histogram.
    """
    mass, occupied = _running(counts), _running(counts > 0)
    log_mean = np.zeros((BINS // LEVELS, BINS))
    spread = np.zeros_like(log_mean)
    for row in range(BINS // LEVELS):
        length, starts = row + 1, BINS - row
        inside = mass[length:] - mass[:starts]
        number = occupied[length:] - occupied[:starts]
        log_mean[row, :starts] = np.log(np.maximum(inside, 1) / np.maximum(number, 1))
        spread[row, :starts] = inside * log_mean[row, :starts]
    return log_mean, spread


@functools.cache
def _runs_of_levels() -> npt.NDArray[np.intp]:
    """Return where in the tables of runs the levels are, [128, 1921] by level and candidate."""
    edges = np.arange(LEVELS + 1)[:, np.newaxis] * np.arange(LEVELS, BINS + 1) // LEVELS
    return np.asarray((np.diff(edges, axis=0) - 1) * BINS + edges[:-1], np.intp)


def _running(values: npt.NDArray[Any]) -> Doubles:
    """Return the sums of the first 0, 1, ... of ``values``."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _x_log_x(values: npt.NDArray[Any]) -> Doubles:
    return np.asarray(values * np.log(np.maximum(values, 1)), np.float64)
