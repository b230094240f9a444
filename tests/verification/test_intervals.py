from __future__ import annotations

import numpy as np
import pytest

from trtbuild.verification.intervals import calls_needed, mean, percentiles, ratio

TRIALS = 30


def drifting(seed: int, rounds: int = 80, calls: int = 5) -> np.ndarray[tuple[int, int]]:
    """Times around 1 ms whose disturbance fades over about three rounds."""
    random = np.random.default_rng(seed)
    level, levels = 0.0, []
    for shock in random.normal(scale=0.1, size=rounds):
        level = 0.7 * level + shock
        levels.append(level)
    noise = random.normal(scale=0.02, size=(rounds, calls))
    return np.asarray(np.exp(np.asarray(levels)[:, None] + noise))


def test_intervals_of_correlated_rounds_hold_the_truth_as_often_as_they_say() -> None:
    held, too_narrow = 0, 0
    for seed in range(TRIALS):
        samples = drifting(seed)
        found = percentiles(samples)[0]
        held += found.low <= 1.0 <= found.high
        shuffled = np.random.default_rng(seed).permutation(samples.ravel()).reshape(-1, 1)
        naive = percentiles(shuffled)[0]  # what it would be if calls were independent
        too_narrow += not naive.low <= 1.0 <= naive.high
    assert held >= 0.8 * TRIALS
    assert too_narrow >= 2 / 3 * TRIALS


def test_a_disturbance_that_both_share_does_not_hide_a_difference() -> None:
    shared = drifting(1)
    found = ratio(shared * 1.05, shared)
    assert found.low == pytest.approx(1.05, abs=0.01)
    assert found.high == pytest.approx(1.05, abs=0.01)


def test_equal_lanes_have_1_in_their_interval_and_more_comparisons_widen_it() -> None:
    outside = 0
    for seed in range(TRIALS):
        found = ratio(drifting(seed), drifting(seed + 1000))
        wide = ratio(drifting(seed), drifting(seed + 1000), level=0.995)
        assert wide.low <= found.low
        assert wide.high >= found.high
        outside += not found.low <= 1 <= found.high
    assert outside <= 0.2 * TRIALS


def test_an_upper_bound_on_p99_takes_368_calls() -> None:
    assert calls_needed(99) == 368
    assert calls_needed(95) == 72
    assert calls_needed(50) == 6


def test_the_mean_of_few_windows_has_students_interval() -> None:
    found = mean([9.0, 10.0, 11.0])
    assert found.value == 10
    assert found.high - found.value == pytest.approx(4.303 / 3**0.5)
    assert mean([2.0] * 30).low == 2
    with pytest.raises(ValueError, match="at least 2 windows"):
        mean([1.0])
