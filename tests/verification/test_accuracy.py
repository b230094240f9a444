from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.sessions import FunctionSession, elementwise, identity, spec
from trtbuild.batches import Batch, Metric, Outputs
from trtbuild.errors import BuildError, DataError
from trtbuild.verification.accuracy import compare

if TYPE_CHECKING:
    from collections.abc import Sequence


X = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
LABELS = X.argmax(axis=1)


Score = Callable[[Outputs, Batch], npt.NDArray[np.float64]]


def hits(outputs: Outputs, batch: Batch) -> npt.NDArray[np.float64]:
    return np.asarray(outputs["y"].argmax(axis=1) == batch["labels"], dtype=np.float64)


TOP1 = Metric(name="top-1", higher_is_better=True, score=hits)


def batches(sizes: Sequence[int]) -> list[dict[str, npt.NDArray[Any]]]:
    ends = np.cumsum(sizes)
    return [
        {"x": X[end - n : end], "labels": LABELS[end - n : end]}
        for end, n in zip(ends, sizes, strict=True)
    ]


def test_figures_are_those_worked_out_by_hand() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 5.0]], dtype=np.float32)
    candidate = np.array([[3.0, 0.0], [0.0, 5.0]], dtype=np.float32)
    found = compare(
        elementwise(lambda _: reference),
        {"engine": elementwise(lambda _: candidate)},
        [{"x": X[:2]}],
        None,
    )
    (errors,) = found.candidates["engine"].errors
    # Signal 9 + 16 + 25 = 50, candidate 9 + 25 = 34, product 34, noise 16.
    assert errors.cosine == pytest.approx(34 / (50 * 34) ** 0.5)
    assert errors.sqnr_db == pytest.approx(10 * np.log10(50 / 16))
    assert errors.max_abs == 4
    assert errors.argmax_agreement == 0.5
    assert (errors.output, errors.elements, errors.nonfinite) == ("y", 4, 0)


def test_an_equal_output_has_no_noise_and_a_zero_one_no_cosine() -> None:
    same = compare(identity(), {"engine": identity()}, [{"x": X}], None)
    (errors,) = same.candidates["engine"].errors
    assert errors.cosine == pytest.approx(1, abs=1e-12)
    assert (errors.sqnr_db, errors.max_abs) == (None, 0)
    dead = elementwise(np.zeros_like)
    (errors,) = (
        compare(identity(), {"engine": dead}, [{"x": X}], None).candidates["engine"].errors
    )
    assert errors.cosine is None
    assert errors.sqnr_db == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "output",
    [
        np.ones(6, np.float32),
        np.ones((6, 1), np.float32),
        np.ones((6, 1, 2, 2), np.float32),
        np.arange(12, dtype=np.int64).reshape(6, 2),
        np.ones((6, 2), np.bool_),
    ],
)
def test_argmax_is_only_of_rows_of_floats(output: npt.NDArray[Any]) -> None:
    session = elementwise(lambda _: output)
    (errors,) = compare(session, {"e": session}, [{"x": X}], None).candidates["e"].errors
    assert errors.argmax_agreement is None
    assert errors.max_abs == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1).map(np.cumsum))
def test_batch_size_does_not_change_the_result(cuts: npt.NDArray[np.int64]) -> None:
    edges = sorted({0, 12, *(int(cut) for cut in cuts if cut < 12)})
    noisy = {"engine": elementwise(lambda x: np.round(x * 4) / 4)}
    whole = compare(identity(), noisy, batches([12]), TOP1)
    parts = compare(identity(), noisy, batches(np.diff(edges).tolist()), TOP1)
    (one,), (other,) = whole.candidates["engine"].errors, parts.candidates["engine"].errors
    assert one.max_abs == other.max_abs
    assert one.argmax_agreement == other.argmax_agreement
    assert one.cosine == pytest.approx(other.cosine, rel=1e-12)
    assert one.sqnr_db == pytest.approx(other.sqnr_db, rel=1e-12)
    np.testing.assert_array_equal(
        whole.candidates["engine"].scores, parts.candidates["engine"].scores
    )
    assert (whole.samples, parts.samples) == (12, 12)


def test_outputs_larger_than_a_chunk_count_in_full() -> None:
    big = np.ones((3, 1 << 20), np.float32)
    worse = big.copy()
    worse[2, -1] = 3
    found = compare(
        elementwise(lambda _: big), {"engine": elementwise(lambda _: worse)}, [{"x": X}], None
    )
    (errors,) = found.candidates["engine"].errors
    assert errors.max_abs == 2
    assert errors.sqnr_db == pytest.approx(10 * np.log10((3 << 20) / 4))


def test_every_unit_is_scored_for_everyone() -> None:
    wrong_for_two = X.copy()
    wrong_for_two[[1, 7]] = -wrong_for_two[[1, 7]]
    table = {x.tobytes(): y for x, y in zip(X, wrong_for_two, strict=True)}
    flipped = elementwise(lambda x: np.stack([table[row.tobytes()] for row in x]))
    found = compare(identity(), {"good": identity(), "bad": flipped}, batches([5, 7]), TOP1)
    np.testing.assert_array_equal(found.reference_scores, np.ones(12))
    np.testing.assert_array_equal(found.candidates["good"].scores, np.ones(12))
    assert np.flatnonzero(found.candidates["bad"].scores == 0).tolist() == [1, 7]


def test_nan_is_counted_and_does_not_poison_the_other_figures() -> None:
    def damage(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        damaged = x.copy()
        damaged[0, :2] = np.nan, np.inf
        return damaged

    found = compare(identity(), {"engine": elementwise(damage)}, batches([12]), TOP1)
    (errors,) = found.candidates["engine"].errors
    assert (errors.nonfinite, errors.reference_nonfinite, errors.max_abs) == (2, 0, 0)


def test_infinities_that_the_framework_has_too_are_no_damage() -> None:
    def masked(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.where(x > 1, np.float32(-np.inf), x)

    session = elementwise(masked)
    (errors,) = compare(session, {"e": session}, [{"x": X}], None).candidates["e"].errors
    assert errors.nonfinite == 0
    assert errors.reference_nonfinite == np.count_nonzero(X > 1)


def test_a_metric_that_nan_outputs_break_scores_nan() -> None:
    def strict(outputs: Outputs, batch: Batch) -> npt.NDArray[np.float64]:
        if not np.isfinite(outputs["y"]).all():
            raise ValueError("NaN in y")
        return hits(outputs, batch)

    metric = Metric(name="strict", higher_is_better=True, score=strict)
    broken = elementwise(lambda x: np.where(x > 2, np.float32(np.nan), x))
    count = [int((X[:6] > 2).any()), int((X[6:] > 2).any())]
    found = compare(identity(), {"engine": broken}, batches([6, 6]), metric)
    lost = np.isnan(found.candidates["engine"].scores).reshape(2, 6).all(axis=1)
    assert lost.tolist() == [bool(each) for each in count]
    assert lost.any()


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda _o, _b: 1 / 0, r"raised ZeroDivisionError in batch 0"),
        (lambda _o, _b: np.float64(0.5), r"batch 0: expected .* shape \[units\].*shape \[\]"),
        (lambda _o, _b: np.ones((2, 2)), r"shape \[2, 2\]"),
        (lambda _o, _b: np.array(["good"]), r"expected an array of numbers"),
        (lambda _o, _b: np.array([1.0, np.nan]), r"batch 0, unit 1: .* is nan"),
        (lambda _o, _b: np.empty(0), r"scored no unit in 1 batches"),
    ],
)
def test_a_wrong_metric_is_named_with_its_batch(score: Score, message: str) -> None:
    metric = Metric(name="mine", higher_is_better=True, score=score)
    with pytest.raises(DataError, match=message) as caught:
        compare(identity(), {"engine": identity()}, batches([12]), metric)
    assert "metric 'mine'" in str(caught.value)
    assert "test_accuracy.<lambda>" in str(caught.value)


def test_units_that_depend_on_the_outputs_are_refused() -> None:
    def positives(outputs: Outputs, _: Batch) -> npt.NDArray[np.float64]:
        return outputs["y"][outputs["y"] > 0].astype(np.float64)

    metric = Metric(name="positives", higher_is_better=True, score=positives)
    with pytest.raises(DataError, match="must not depend on the outputs"):
        compare(identity(), {"e": elementwise(np.abs)}, batches([12]), metric)


def test_a_missing_input_and_missing_data_are_named() -> None:
    with pytest.raises(DataError, match=r"batch 1 has no array 'x'.*\['y'\]"):
        compare(identity(), {}, [{"x": X}, {"y": X}], None)
    with pytest.raises(DataError, match="no evaluation batches"):
        compare(identity(), {"engine": identity()}, [], None)


def test_an_engine_of_another_model_is_refused() -> None:
    short = elementwise(lambda x: x[:, :2])
    with pytest.raises(BuildError, match=r"other, batch 0: output 'y' has shape \[12, 2\]"):
        compare(identity(), {"other": short}, batches([12]), None)
    renamed = FunctionSession(lambda inputs: {"z": inputs["x"]}, outputs=(spec("z", 4),))
    with pytest.raises(BuildError, match="no output 'y', only"):
        compare(identity(), {"other": renamed}, batches([12]), None)
