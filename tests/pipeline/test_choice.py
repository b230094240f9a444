"""Choosing a method: what the data cannot tell apart is decided by the signal."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trtbuild.batches import Metric
from trtbuild.pipeline.choice import Trial, choose, refined, trial
from trtbuild.verification.accuracy import Candidate
from trtbuild.verification.results import TensorErrors


def metric(*, higher_is_better: bool = True) -> Metric:
    return Metric(
        name="top-1",
        higher_is_better=higher_is_better,
        score=lambda outputs, _: np.asarray(outputs["y"], np.float64),
    )


def attempt(method: str, right: int, sqnr_db: float, units: int = 400) -> Trial:
    """Return a trial that got the first ``right`` of the units right."""
    scores = (np.arange(units) < right).astype(np.float64)
    return Trial(method=method, scores=scores, sqnr_db=sqnr_db)


def test_the_best_metric_wins_where_no_output_is_damaged() -> None:
    trials = [attempt("minmax", 300, 40.0), attempt("mse", 390, 39.6), attempt("kl", 380, 41.0)]
    assert choose(trials, metric()).method == "mse"


def test_a_method_that_damages_the_outputs_is_out_whatever_the_metric_says() -> None:
    trials = [attempt("minmax", 390, 30.0), attempt("mse", 391, 35.0), attempt("kl", 400, 9.0)]
    assert choose(trials, metric()).method == "mse"
    without_max = [attempt("mse", 391, 35.0), attempt("kl", 400, 9.0)]
    assert choose(without_max, metric()).method == "mse"


def test_equal_scores_are_decided_by_the_signal() -> None:
    trials = [attempt("minmax", 390, 30.0), attempt("mse", 390, 35.0), attempt("p", 390, 35.0)]
    assert choose(trials, metric()).method == "mse"


def test_lower_is_better_where_the_metric_says_so() -> None:
    trials = [attempt("minmax", 300, 40.0), attempt("mse", 10, 40.0)]
    assert choose(trials, metric(higher_is_better=False)).method == "mse"


def test_without_a_metric_the_signal_decides_and_the_first_of_equals_wins() -> None:
    trials = [attempt("a", 0, 30.0), attempt("b", 400, 31.0), attempt("c", 0, 31.0)]
    assert choose(trials, None).method == "b"
    unscored = [
        Trial(method=m, scores=np.empty(0), sqnr_db=db) for m, db in (("a", 1), ("b", 2))
    ]
    assert choose(unscored, metric()).method == "b"
    assert unscored[0].metric is None


def test_a_method_whose_metric_broke_is_never_chosen_over_one_that_works() -> None:
    broken = Trial(method="kl", scores=np.full(400, math.nan), sqnr_db=90.0)
    assert broken.metric is None
    assert choose([broken, attempt("minmax", 1, 3.0)], metric()).method == "minmax"


@pytest.mark.parametrize(
    ("sqnr_db", "max_abs", "expected"),
    [(12.5, 1.0, 12.5), (None, 0.0, math.inf), (None, 0.5, -math.inf)],
)
def test_the_worst_output_stands_for_a_trial(
    sqnr_db: float | None, max_abs: float, expected: float
) -> None:
    good = TensorErrors(
        output="a",
        elements=4,
        cosine=1.0,
        sqnr_db=60.0,
        max_abs=0.1,
        argmax_agreement=None,
        nonfinite=0,
        reference_nonfinite=0,
    )
    other = TensorErrors(
        output="b",
        elements=4,
        cosine=None,
        sqnr_db=sqnr_db,
        max_abs=max_abs,
        argmax_agreement=None,
        nonfinite=0,
        reference_nonfinite=0,
    )
    scores = np.ones(3)
    found = trial("mse", Candidate(errors=(good, other), scores=scores))
    assert found.sqnr_db == min(60.0, expected)
    assert found.metric == 1.0


def test_a_refinement_must_gain_signal_and_must_not_lose_the_metric() -> None:
    now = attempt("mse", 390, 30.0)
    assert refined(now, [attempt("a", 390, 30.2)], metric()) is now
    assert refined(now, [attempt("a", 380, 40.0)], metric()) is now
    assert refined(now, [attempt("a", 380, 40.0)], metric(higher_is_better=False)).method == "a"
    both = [attempt("a", 390, 31.0), attempt("b", 391, 32.0), attempt("c", 392, 32.0)]
    assert refined(now, both, metric()).method == "b"
    assert refined(now, both, None).method == "b"


def test_a_loss_within_the_noise_of_paired_scores_is_no_loss() -> None:
    """Of 400 units nine change sides: five lost and four won are one standard error apart."""
    scores = np.zeros(400)
    scores[:200] = 1
    now = Trial(method="mse", scores=scores, sqnr_db=30.0)
    moved = scores.copy()
    moved[:5], moved[200:204] = 0, 1
    assert refined(now, [Trial(method="a", scores=moved, sqnr_db=31.0)], metric()).method == "a"
    moved[200:204] = 0
    assert refined(now, [Trial(method="a", scores=moved, sqnr_db=31.0)], metric()) is now


def test_a_refinement_whose_metric_broke_is_not_taken() -> None:
    broken = Trial(method="a", scores=np.full(400, math.nan), sqnr_db=90.0)
    now = attempt("mse", 390, 30.0)
    assert refined(now, [broken], metric()) is now
