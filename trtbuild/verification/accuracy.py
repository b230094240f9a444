"""Compare engines with the original framework in one pass over the evaluation batches.

Outputs are never kept: sums in float64 and one score per unit are all that grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtbuild.errors import BuildError, DataError, TrtbuildError
from trtbuild.verification.results import TensorErrors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trtbuild.backends import Session
    from trtbuild.batches import Array, Batch, Metric, Outputs

Scores = npt.NDArray[np.float64]

_CHUNK_ELEMENTS = 1 << 20

_CLASS_RANKS = (2, 3)
"""[samples, classes] and [samples, positions, classes]; the last axis of a map is a width."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What one engine did: errors per output, and scores [units], empty without a metric."""

    errors: tuple[TensorErrors, ...]
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All candidates against one reference, on the same batches.

    ``samples`` counts along the first axis of the reference's first input. Scores are in the
    order of the batches, so that unit ``i`` is the same unit for everyone; ``batch_units`` is
    how many each batch has. A candidate's score
    is NaN where its outputs were; the reference's are finite.
    """

    batches: int
    samples: int
    reference_scores: Scores
    candidates: Mapping[str, Candidate]
    batch_units: tuple[int, ...] = ()


def compare(
    reference: Session,
    candidates: Mapping[str, Session],
    batches: Iterable[Batch],
    metric: Metric | None,
) -> Comparison:
    """Run every batch through the reference and every candidate, and sum up the differences.

    Each session is fed the arrays of its own inputs; other arrays are for the metric.

    Raises:
        DataError: there is no batch, a batch lacks an input, or the metric raises or does not
            return one finite score per unit; the message names function and batch.
        BuildError: a candidate lacks an output or gives it another shape.
    """
    runs = {
        name: _Run(name, session, tuple(spec.name for spec in reference.outputs))
        for name, session in candidates.items()
    }
    reference_scores: list[Scores] = []
    samples = 0
    for number, batch in enumerate(batches):
        expected = outputs_of(reference, batch, number)
        reference_scores.append(_reference_scores(metric, expected, batch, number))
        for run in runs.values():
            run.add(expected, batch, number)
            if metric is not None:
                run.score(metric, batch, number, reference_scores[-1])
        samples += _first_axis(feed(reference, batch, number))
    _expect_content(reference_scores, metric)
    return Comparison(
        batches=len(reference_scores),
        samples=samples,
        reference_scores=np.concatenate(reference_scores),
        candidates={name: run.result() for name, run in runs.items()},
        batch_units=tuple(part.size for part in reference_scores),
    )


def feed(session: Session, batch: Batch, number: int) -> dict[str, Array]:
    """Return the arrays of ``batch`` that are inputs of ``session``, in the session's order.

    Raises:
        DataError: an input is missing; ``number`` is what the message calls the batch.
    """
    missing = [spec.name for spec in session.inputs if spec.name not in batch]
    if missing:
        message = (
            f"batch {number} has no array {missing[0]!r}: expected the model's inputs "
            f"{[spec.name for spec in session.inputs]}, got {sorted(batch)}. "
            f"Yield dicts whose keys are the input names"
        )
        raise DataError(message)
    return {spec.name: batch[spec.name] for spec in session.inputs}


def outputs_of(session: Session, batch: Batch, number: int) -> dict[str, Array]:
    """Return what ``session`` computes for ``batch``.

    Raises:
        DataError: an input is missing, or the model fails on the batch; ``number`` is what the
            message calls it.
    """
    inputs = feed(session, batch, number)
    try:
        return session.run(inputs)
    except DataError as error:
        raise DataError(f"evaluation batch {number}: {error}") from error
    except TrtbuildError:
        raise
    except Exception as error:  # a framework raises what it likes
        message = (
            f"evaluation batch {number}: the model fails: {type(error).__name__}: {error}. "
            f"Give values that the model takes"
        )
        raise DataError(message) from error


def _first_axis(inputs: Mapping[str, Array]) -> int:
    first = next(iter(inputs.values()), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1


def _expect_content(scores: list[Scores], metric: Metric | None) -> None:
    if not scores:
        message = "no evaluation batches: give evaluation data with at least one batch"
        raise DataError(message)
    if metric is not None and not any(part.size for part in scores):
        message = (
            f"{_named(metric)} scored no unit in {len(scores)} batches: expected at least one. "
            f"Return one score per sample"
        )
        raise DataError(message)


class _Run:
    """One candidate on its way through the batches."""

    def __init__(self, name: str, session: Session, outputs: tuple[str, ...]) -> None:
        self._name = name
        self._session = session
        self._sums = {output: _OutputSums() for output in outputs}
        self._scores: list[Scores] = []
        self._last: Outputs = {}
        self._damaged = False

    def add(self, expected: Outputs, batch: Batch, number: int) -> None:
        """Run one batch and add its differences."""
        got = self._last = outputs_of(self._session, batch, number)
        before = sum(sums.nonfinite for sums in self._sums.values())
        for name, sums in self._sums.items():
            self._expect_like(expected[name], name, number)
            sums.add(expected[name], got[name])
        self._damaged = sum(sums.nonfinite for sums in self._sums.values()) > before

    def score(self, metric: Metric, batch: Batch, number: int, reference: Scores) -> None:
        """Score the outputs of the last :meth:`add`; NaN where damage broke the metric."""
        try:
            scores = _scores(metric, self._last, batch, number)
        except DataError:
            if not self._damaged:
                raise
            scores = np.full(reference.shape, np.nan)
        if scores.shape != reference.shape:
            message = (
                f"{_named(metric)}: batch {number}: {scores.size} scores for the engine, "
                f"{reference.size} for the framework. Units must not depend on the outputs: "
                f"score each sample once"
            )
            raise DataError(message)
        self._scores.append(np.where(np.isfinite(scores), scores, np.nan))

    def result(self) -> Candidate:
        """Return the figures of all batches."""
        return Candidate(
            errors=tuple(sums.result(name) for name, sums in self._sums.items()),
            scores=np.concatenate(self._scores) if self._scores else np.empty(0),
        )

    def _expect_like(self, expected: Array, name: str, number: int) -> None:
        where = f"{self._name}, batch {number}"
        if name not in self._last:
            message = (
                f"{where}: the engine has no output {name!r}, only {sorted(self._last)}. "
                f"Build it from the graph that was exported from this model"
            )
            raise BuildError(message)
        if self._last[name].shape != expected.shape:
            message = (
                f"{where}: output {name!r} has shape {list(self._last[name].shape)}, the "
                f"framework's has {list(expected.shape)}. An output whose size depends on its "
                f"values cannot be compared: leave such post-processing out of the model"
            )
            raise BuildError(message)


def _reference_scores(
    metric: Metric | None, outputs: Outputs, batch: Batch, number: int
) -> Scores:
    if metric is None:
        return np.empty(0)
    scores = _scores(metric, outputs, batch, number)
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        message = (
            f"{_named(metric)}: batch {number}, unit {bad[0]}: the score of the original "
            f"framework is {scores[bad[0]]}, expected a finite number. "
            f"Correct the metric or the data"
        )
        raise DataError(message)
    return scores


def _scores(metric: Metric, outputs: Outputs, batch: Batch, number: int) -> Scores:
    try:
        scores = np.asarray(metric.score(outputs, batch))
    except DataError as error:
        raise DataError(f"evaluation batch {number}: {error}") from error
    except Exception as error:  # a metric is the user's code: it may raise anything
        message = (
            f"{_named(metric)} raised {type(error).__name__} in batch {number}: {error}. "
            f"Correct the metric, or its batches"
        )
        raise DataError(message) from error
    if scores.ndim != 1 or scores.dtype.kind not in "biuf":
        message = (
            f"{_named(metric)}: batch {number}: expected an array of numbers of shape [units], "
            f"got {scores.dtype.name} of shape {list(scores.shape)}. Return one score per unit"
        )
        raise DataError(message)
    return scores.astype(np.float64)


def _named(metric: Metric) -> str:
    function = getattr(metric.score, "__qualname__", type(metric.score).__name__)
    module = getattr(metric.score, "__module__", "")
    return f"metric {metric.name!r} ({module}.{function})"


class _OutputSums:
    """Running sums of one output of one candidate against the reference."""

    def __init__(self) -> None:
        self.elements = 0
        self.nonfinite = 0
        self.reference_nonfinite = 0
        self._signal = self._candidate = self._product = self._noise = 0.0
        self._max_abs = 0.0
        self._rows = self._agreeing = 0

    def add(self, expected: Array, got: Array) -> None:
        """Add one batch; both arrays have one shape."""
        self.elements += expected.size
        flat_expected, flat_got = expected.reshape(-1), got.reshape(-1)
        for start in range(0, expected.size, _CHUNK_ELEMENTS):
            part = slice(start, start + _CHUNK_ELEMENTS)
            self._add_chunk(
                flat_expected[part].astype(np.float64), flat_got[part].astype(np.float64)
            )
        if _has_argmax(expected):
            agreeing = expected.argmax(axis=-1) == got.argmax(axis=-1)
            self._rows += agreeing.size
            self._agreeing += int(np.count_nonzero(agreeing))

    def _add_chunk(self, expected: Scores, got: Scores) -> None:
        finite = np.isfinite(expected)
        self.reference_nonfinite += int(np.count_nonzero(~finite))
        finite &= np.isfinite(got)
        if not finite.all():
            # Equal infinities are the model's own (attention masks); NaN equals nothing.
            self.nonfinite += int(np.count_nonzero(~finite & (expected != got)))
            expected, got = expected[finite], got[finite]
        if expected.size == 0:
            return
        difference = expected - got
        self._signal += float(expected @ expected)
        self._candidate += float(got @ got)
        self._product += float(expected @ got)
        self._noise += float(difference @ difference)
        self._max_abs = max(self._max_abs, float(np.abs(difference).max()))

    def result(self, name: str) -> TensorErrors:
        """Return the figures of everything that was added."""
        norms = math.sqrt(self._signal) * math.sqrt(self._candidate)
        defined = self._signal > 0 and self._noise > 0
        return TensorErrors(
            output=name,
            elements=self.elements,
            cosine=max(-1.0, min(1.0, self._product / norms)) if norms > 0 else None,
            sqnr_db=10 * math.log10(self._signal / self._noise) if defined else None,
            max_abs=self._max_abs,
            argmax_agreement=self._agreeing / self._rows if self._rows else None,
            nonfinite=self.nonfinite,
            reference_nonfinite=self.reference_nonfinite,
        )


def _has_argmax(array: Array) -> bool:
    floating = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return floating and array.ndim in _CLASS_RANKS and array.shape[-1] > 1
