"""How sure a metric is: the paired bootstrap over independent units.

Framework and engine are scored on the same units, and whole units are resampled, so that what
both find hard cancels out of the drop.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtbuild.verification.results import Interval, MetricEstimate

if TYPE_CHECKING:
    from collections.abc import Sequence

RESAMPLES = 2000
_SEED = 20_250_101
_CHUNK_ELEMENTS = 1 << 21
_PERCENTILES = (2.5, 97.5)
_RULE_OF_THREE = 3.0
_FEWEST_BATCHES = 3

Scores = npt.NDArray[np.float64]


def estimate(reference: Scores, engine: Scores, *, higher_is_better: bool) -> MetricEstimate:
    """Return both means and the drop between them, each with its 95 % interval.

    ``reference`` and ``engine`` have shape [units] and the same units in the same order; the
    reference's are finite. The result is the same at every call, and does not depend on the
    order of units. Intervals are percentiles of 2,000 resampled means.

    A bootstrap cannot see what did not occur: of units of which none got worse, it would call
    it certain that none does. Up to ``3 / n`` of all units may still behave differently (rule
    of three, 95 %), so to a side on which no unit was seen to change (both, where all changed
    by one amount) the drop's interval reaches at least that share of the scores' span.

    Raises:
        ValueError: the shapes differ, or there is no unit.
    """
    if reference.ndim != 1 or reference.shape != engine.shape or reference.size == 0:
        message = f"expected two arrays [units], got {reference.shape} and {engine.shape}"
        raise ValueError(message)
    sign = 1.0 if higher_is_better else -1.0
    if not np.isfinite(engine).all():
        (reference_mean,) = _intervals(reference[:, None])
        return MetricEstimate(
            higher_is_better=higher_is_better,
            units=reference.size,
            reference=reference_mean,
            engine=None,
            drop=None,
            worse_units=int(np.count_nonzero(~(sign * (reference - engine) <= 0))),
            better_units=int(np.count_nonzero(sign * (reference - engine) < 0)),
        )
    change = sign * (reference - engine)
    columns = np.stack([reference, engine, change], axis=1)
    reference_mean, engine_mean, drop = _intervals(columns)
    drop = _unseen(drop, change, np.concatenate([reference, engine]))
    return MetricEstimate(
        higher_is_better=higher_is_better,
        units=reference.size,
        reference=reference_mean,
        engine=engine_mean,
        drop=drop,
        worse_units=int(np.count_nonzero(change > 0)),
        better_units=int(np.count_nonzero(change < 0)),
    )


def standard_error(reference: Scores, engine: Scores, batch_units: Sequence[int]) -> float:
    """Return the standard error of the drop, for units of one batch that may be alike.

    Batches often hold what belongs together (views of one photograph, texts of one family), and
    then few batches tell less than their many units do: of the errors over units and over
    batches (three or more, sandwich estimator) the larger one counts. 0 where no unit changed.
    """
    change = reference - engine
    units = change.size
    centered = change - change.mean()
    error = math.sqrt(float(centered @ centered)) / units
    edges = np.cumsum([0, *batch_units])
    sums = [
        float(centered[start:end].sum())
        for start, end in itertools.pairwise(edges)
        if end > start
    ]
    if len(sums) < _FEWEST_BATCHES:
        return error
    batches = len(sums)
    spread = batches / (batches - 1) * sum(each**2 for each in sums)
    return max(error, math.sqrt(spread) / units)


def _intervals(columns: Scores) -> tuple[Interval, ...]:
    """Return the mean of each column of [units, columns], rows resampled together.

    Equal rows are drawn as one, with a multinomial count: the same distribution, a few draws
    instead of one per unit when scores are 0 or 1, and independent of the order of rows.
    """
    rows, counts = np.unique(columns, axis=0, return_counts=True)
    units = int(counts.sum())
    # The center keeps sums of large, nearly equal scores exact.
    center = rows.mean(axis=0)
    generator = np.random.default_rng(_SEED)
    step = max(1, _CHUNK_ELEMENTS // len(rows))
    means = np.concatenate(
        [
            generator.multinomial(units, counts / units, size=min(step, RESAMPLES - start))
            @ (rows - center)
            for start in range(0, RESAMPLES, step)
        ]
    )
    low, high = np.percentile(means / units, _PERCENTILES, axis=0) + center
    value = counts @ (rows - center) / units + center
    return tuple(
        Interval(value=float(mid), low=float(lo), high=float(hi))
        for mid, lo, hi in zip(value, low, high, strict=True)
    )


def _unseen(drop: Interval, change: Scores, scores: Scores) -> Interval:
    """Widen an interval to the sides on which no unit was seen to change."""
    share = min(1.0, _RULE_OF_THREE / change.size)
    reach = share * (max(float(scores.max()), 0.0) - min(float(scores.min()), 0.0))
    constant = bool(np.ptp(change) == 0)
    worse_seen = not constant and bool((change > 0).any())
    better_seen = not constant and bool((change < 0).any())
    return Interval(
        value=drop.value,
        low=drop.low if better_seen else min(drop.low, drop.value - reach),
        high=drop.high if worse_seen else max(drop.high, drop.value + reach),
    )
