from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trtbuild.verification.bootstrap import estimate, standard_error

if TYPE_CHECKING:
    from random import Random

Scores = npt.NDArray[np.float64]

numbers = st.floats(-100, 100, width=32)
pairs = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, n, elements=numbers), arrays(np.float64, n, elements=numbers)
    )
)


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_an_interval_contains_its_estimate(scores: tuple[Scores, Scores]) -> None:
    found = estimate(*scores, higher_is_better=True)
    assert found.engine is not None
    assert found.drop is not None
    for interval in (found.reference, found.engine, found.drop):
        assert interval.low - 1e-9 <= interval.value <= interval.high + 1e-9
    assert found.drop.value == pytest.approx(
        found.reference.value - found.engine.value, abs=1e-9
    )


@settings(max_examples=20, deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_units_does_not_matter(
    scores: tuple[Scores, Scores], random: Random
) -> None:
    order = list(range(scores[0].size))
    random.shuffle(order)
    shuffled = estimate(scores[0][order], scores[1][order], higher_is_better=True)
    assert shuffled == estimate(*scores, higher_is_better=True)


@settings(max_examples=20, deadline=None)
@given(pairs)
def test_direction_turns_the_drop_around(scores: tuple[Scores, Scores]) -> None:
    up = estimate(*scores, higher_is_better=True)
    down = estimate(*scores, higher_is_better=False)
    assert up.drop is not None
    assert down.drop is not None
    assert up.drop.value == pytest.approx(-down.drop.value, abs=1e-9)
    assert (up.worse_units, up.better_units) == (down.better_units, down.worse_units)


def test_the_drop_is_positive_when_the_engine_is_worse() -> None:
    generator = np.random.default_rng(3)
    reference = generator.random(200)
    worse = reference - 0.1 * generator.random(200)
    found = estimate(reference, worse, higher_is_better=True)
    assert found.drop is not None
    assert 0 < found.drop.low < 0.05 < found.drop.high + 0.01
    assert found.worse_units == 200


def test_pairing_removes_what_both_find_hard() -> None:
    generator = np.random.default_rng(4)
    reference = generator.random(300)
    found = estimate(
        reference, reference + 0.01 * generator.normal(size=300), higher_is_better=True
    )
    assert found.drop is not None
    width = found.drop.high - found.drop.low
    assert width < 0.1 * (found.reference.high - found.reference.low)


def test_the_interval_is_as_wide_as_theory_says() -> None:
    reference = np.ones(1000)
    engine = np.ones(1000)
    engine[:50] = 0
    found = estimate(reference, engine, higher_is_better=True)
    assert found.drop is not None
    sigma = (0.05 * 0.95 / 1000) ** 0.5
    assert found.drop.value == pytest.approx(0.05)
    assert found.drop.high - found.drop.low == pytest.approx(2 * 1.96 * sigma, rel=0.1)


def test_intervals_of_equal_models_cover_no_drop_about_95_times_in_100() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(100):
        reference = (generator.random(400) < 0.9).astype(float)
        engine = np.where(generator.random(400) < 0.1, generator.random(400) < 0.9, reference)
        found = estimate(reference, engine, higher_is_better=True)
        assert found.drop is not None
        covered += found.drop.low <= 0 <= found.drop.high
    assert 88 <= covered <= 100


def test_no_change_seen_is_not_no_change_possible() -> None:
    scores = np.array([1.0, 0.0, 1.0] * 50)
    found = estimate(scores, scores, higher_is_better=True)
    assert found.drop is not None
    assert found.drop.value == 0
    assert (found.drop.low, found.drop.high) == pytest.approx((-3 / 150, 3 / 150))


def test_a_score_that_is_no_number_leaves_no_drop() -> None:
    found = estimate(np.ones(3), np.array([1.0, np.nan, 0.5]), higher_is_better=True)
    assert found.engine is None
    assert found.drop is None
    assert (found.reference.value, found.worse_units, found.better_units) == (1, 2, 0)


def test_wrong_shapes_are_our_own_mistake() -> None:
    with pytest.raises(ValueError, match=r"two arrays \[units\]"):
        estimate(np.ones(3), np.ones(4), higher_is_better=True)
    with pytest.raises(ValueError, match=r"two arrays \[units\]"):
        estimate(np.empty(0), np.empty(0), higher_is_better=True)


def test_a_side_on_which_no_unit_changed_stays_uncertain() -> None:
    reference = np.zeros(600)
    reference[:300] = 1.0
    better = reference.copy()
    better[599] = 1.0
    found = estimate(reference, better, higher_is_better=True).drop
    assert found is not None
    assert found.low < found.value < 0
    assert found.high == pytest.approx(found.value + 3 / 600)


def test_units_of_one_batch_that_go_together_count_as_few() -> None:
    change = np.repeat([0.3, 0.0, 0.1, -0.1], 25)
    reference = np.ones(100)
    alike = standard_error(reference, reference - change, [25] * 4)
    assert alike == pytest.approx(np.std([0.3, 0.0, 0.1, -0.1], ddof=1) / 2)
    mixed = standard_error(reference, reference - change, [50, 50])
    assert mixed == pytest.approx(change.std() / 10), "two batches tell nothing of batches"
    assert standard_error(reference, reference, [25] * 4) == 0
