"""Choose a calibration method by what it does to held-out data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtbuild.verify.bootstrap import estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trtbuild.batches import Metric
    from trtbuild.verify.accuracy import Candidate
    from trtbuild.verify.bootstrap import Scores

HELD_OUT_EVERY = 4
"""Every fourth evaluation batch chooses the method; the others judge the engine."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One method, tried: its scores [units] (empty without a metric) and its worst SQNR."""

    method: str
    scores: Scores
    sqnr_db: float

    @property
    def metric(self) -> float | None:
        """The mean score, None without a metric or where it is not a number."""
        mean = float(self.scores.mean()) if self.scores.size else math.nan
        return None if math.isnan(mean) else mean


def trial(method: str, candidate: Candidate) -> Trial:
    """Return what a comparison with the unquantized graph says of ``method``."""
    return Trial(
        method=method,
        scores=candidate.scores,
        sqnr_db=min(_sqnr(error.sqnr_db, error.max_abs) for error in candidate.errors),
    )


def choose(trials: Sequence[Trial], metric: Metric | None) -> Trial:
    """Return the trial to use.

    With a metric: of those that the data cannot tell from the best (the paired 95 % interval
    of their drop below it contains 0), the one of the highest SQNR, since a handful of units
    more or less right is chance. Without a metric: the highest SQNR. Of equals the first.
    """
    usable = [each for each in trials if each.metric is not None]
    if metric is None or not usable:
        return max(trials, key=lambda each: each.sqnr_db)
    sign = 1.0 if metric.higher_is_better else -1.0
    best = max(usable, key=lambda each: sign * (each.metric or 0.0))
    close = [each for each in usable if _indistinguishable(best, each, metric)]
    return max(close, key=lambda each: each.sqnr_db)


def _indistinguishable(best: Trial, other: Trial, metric: Metric) -> bool:
    found = estimate(best.scores, other.scores, higher_is_better=metric.higher_is_better)
    return found.drop is not None and found.drop.low <= 0.0


def _sqnr(sqnr_db: float | None, max_abs: float) -> float:
    """Return the SQNR for comparisons: no noise is best, no signal with noise is worst."""
    if sqnr_db is not None:
        return sqnr_db
    return math.inf if max_abs == 0 else -math.inf
