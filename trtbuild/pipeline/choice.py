"""Choose a calibration method by what it does to held-out data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtbuild.quantization.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trtbuild.batches import Metric
    from trtbuild.verification.accuracy import Candidate
    from trtbuild.verification.bootstrap import Scores

HELD_OUT_EVERY = 4
"""Every fourth evaluation batch chooses the method; the others judge the engine."""

PLAIN_MAX = METHODS[0]

GUARD_DB = 0.5
"""How far below plain max a method may fall and still be chosen."""

GAIN_DB = 0.25
"""What a refinement must gain: below it the choice would follow the noise of the data."""


VERSION = 3
"""Part of the key of what was tried for a choice; raised when the rule changes."""


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
    """Return the trial to use: the best on the metric that does not damage the outputs.

    A method whose SQNR is more than 0.5 dB below that of plain max (or, where max was not
    tried, of the best method) is out, whatever the metric says: held-out data is small, and
    luck would choose a method that clips too hard. Of the others the best mean score wins, of
    equal scores, and without a metric, the highest SQNR, of equals the first.
    """
    floor = floor_db(trials)
    sound = [each for each in trials if each.sqnr_db >= floor]
    usable = [each for each in sound if each.metric is not None]
    if metric is None or not usable:
        return max(sound, key=lambda each: each.sqnr_db)
    sign = 1.0 if metric.higher_is_better else -1.0
    return max(usable, key=lambda each: (sign * (each.metric or 0.0), each.sqnr_db))


def floor_db(trials: Sequence[Trial]) -> float:
    """Return the least SQNR that a choice may have, given the trials of uniform methods."""
    plain = [each.sqnr_db for each in trials if each.method == PLAIN_MAX]
    return (plain[0] if plain else max(each.sqnr_db for each in trials)) - GUARD_DB


def refined(current: Trial, trials: Sequence[Trial], metric: Metric | None) -> Trial:
    """Return the best of ``trials`` that improves on ``current``, or ``current``.

    To improve is to gain 0.25 dB of SQNR without a loss of the metric that its own noise does
    not explain: the mean paired difference of scores is at least minus its standard error. Of
    those that do, the highest SQNR wins, of equals the first. The gain keeps whatever guard
    ``current`` passed.
    """
    better = [
        each
        for each in trials
        if each.sqnr_db >= current.sqnr_db + GAIN_DB and not _worse(each, current, metric)
    ]
    return max(better, key=lambda each: each.sqnr_db, default=current)


def _worse(trial: Trial, current: Trial, metric: Metric | None) -> bool:
    if metric is None or current.metric is None:
        return False
    if trial.metric is None:
        return True
    sign = 1.0 if metric.higher_is_better else -1.0
    gain = sign * (trial.scores - current.scores)
    error = float(gain.std(ddof=1)) / math.sqrt(gain.size) if gain.size > 1 else 0.0
    return float(gain.mean()) < -error


def _sqnr(sqnr_db: float | None, max_abs: float) -> float:
    """Return the SQNR for comparisons: no noise is best, no signal with noise is worst."""
    if sqnr_db is not None:
        return sqnr_db
    return math.inf if max_abs == 0 else -math.inf
