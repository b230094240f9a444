"""Percentiles of times and ratios between them, with intervals that know of correlation.

Calls of one turn share what disturbed it, and so do neighboring rounds: a core that is taken,
a clock that sinks. So blocks of consecutive whole rounds are resampled, about the cube root of
their number long (the order that Hall, Horowitz and Jing, Biometrika 82, 1995, give for
variances).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtbuild.verification.results import Interval, Speedup

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

QUANTILES = (50, 95, 99)

_RESAMPLES = 2000
_LEAST_RESAMPLES = 500
_ELEMENTS = 10**8  # drawn in all: what a bootstrap of many calls may cost, in seconds
_SEED = 20_250_102
_CHUNK_ELEMENTS = 1 << 21
_LEVEL = 0.95

# Two-sided 95 % quantiles of Student's distribution by degrees of freedom, from 1.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

Samples = npt.NDArray[np.float64]


def percentiles(samples: Samples) -> tuple[Interval, ...]:
    """Return the percentiles :data:`QUANTILES` of ``samples`` [rounds, calls]."""
    resampled = np.concatenate(
        [
            np.percentile(samples[rounds].reshape(len(rounds), -1), QUANTILES, axis=1).T
            for rounds in _resampled_rounds(samples.shape)
        ]
    )
    low, high = np.percentile(resampled, _ends(_LEVEL), axis=0)
    return tuple(
        Interval(value=float(value), low=float(lo), high=float(hi))
        for value, lo, hi in zip(np.percentile(samples, QUANTILES), low, high, strict=True)
    )


def calls_needed(quantile: int) -> int:
    """Return how many calls an upper end of the interval of ``quantile`` needs.

    With fewer, the chance that all calls lie below the true percentile is more than 2.5 %, so
    that the slowest call seen is no bound (order statistics: 0.99^368 = 0.025).
    """
    return math.ceil(math.log((1 - _LEVEL) / 2) / math.log(quantile / 100))


def ratio(slow: Samples, fast: Samples, level: float = _LEVEL) -> Speedup:
    """Return the ratio of medians of two lanes of one run, both [rounds, calls].

    Raises:
        ValueError: the two were not measured side by side: their rounds differ in number.
    """
    if slow.shape != fast.shape:
        message = f"expected latencies of one run, got rounds {slow.shape} and {fast.shape}"
        raise ValueError(message)
    pairs = np.median(slow, axis=1) / np.median(fast, axis=1)
    resampled = np.concatenate(
        [
            np.median(slow[rounds].reshape(len(rounds), -1), axis=1)
            / np.median(fast[rounds].reshape(len(rounds), -1), axis=1)
            for rounds in _resampled_rounds(slow.shape)
        ]
    )
    low, high = np.percentile(resampled, _ends(level))
    p10, p90 = np.percentile(pairs, (10, 90))
    return Speedup(
        value=float(np.median(slow) / np.median(fast)),
        low=float(low),
        high=float(high),
        pair_p10=float(p10),
        pair_p90=float(p90),
    )


def mean(values: Sequence[float]) -> Interval:
    """Return the mean of a few independent windows and its interval, by Student's t.

    Raises:
        ValueError: there are fewer than 2 windows.
    """
    array = np.asarray(values, np.float64)
    if array.size < 2:  # noqa: PLR2004  one window has no spread
        message = f"expected at least 2 windows, got {array.size}"
        raise ValueError(message)
    factor = _STUDENT[min(array.size - 1, len(_STUDENT)) - 1]
    half = factor * float(array.std(ddof=1)) / math.sqrt(array.size)
    center = float(array.mean())
    return Interval(value=center, low=center - half, high=center + half)


def _ends(level: float) -> tuple[float, float]:
    tail = 100 * (1 - level) / 2
    return tail, 100 - tail


def _resampled_rounds(shape: tuple[int, ...]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield chunks [resamples, rounds] of round indices, the same at every call.

    Blocks go around: the first round follows the last, so that each is drawn equally often.
    """
    rounds, calls = shape
    length = max(1, round(rounds ** (1 / 3)))
    blocks = -(-rounds // length)
    generator = np.random.default_rng(_SEED)
    step = max(1, _CHUNK_ELEMENTS // (rounds * calls))
    resamples = min(_RESAMPLES, max(_LEAST_RESAMPLES, _ELEMENTS // (rounds * calls)))
    for start in range(0, resamples, step):
        size = (min(step, resamples - start), blocks, 1)
        drawn = generator.integers(0, rounds, size=size) + np.arange(length)
        yield drawn.reshape(len(drawn), -1)[:, :rounds] % rounds
