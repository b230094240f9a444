"""What verification finds: plain values, without arrays, that a report can hold as they are.

JSON has no NaN and no infinity, so a figure that is undefined is ``None``, never a number.
"""

from __future__ import annotations

from typing import Literal

from trtbuild.engine import Value


class Interval(Value, frozen=True, kw_only=True):
    """An estimate and its two-sided 95 % interval, in the unit of what is estimated."""

    value: float
    low: float
    high: float


class TensorErrors(Value, frozen=True, kw_only=True):
    """How one output differs from the framework's, over all elements of all batches.

    ``cosine`` is ``None`` where one side is all zero. ``sqnr_db`` is ``None`` where there is no
    noise (then ``max_abs`` is 0) or no signal. ``argmax_agreement`` is the share of rows along
    the last axis whose largest element has the same index, and ``None`` for outputs of rank
    below 2, of a last axis of 1, or of a type that is not floating point. ``nonfinite`` counts
    elements that are NaN, or infinite on one side only: they are left out of the other figures.
    ``reference_nonfinite`` counts NaN and infinities of the framework itself.
    """

    output: str
    elements: int
    cosine: float | None
    sqnr_db: float | None
    max_abs: float
    argmax_agreement: float | None
    nonfinite: int
    reference_nonfinite: int


class MetricEstimate(Value, frozen=True, kw_only=True):
    """The task metric of framework and engine over the same units, and its drop.

    ``drop`` is positive when the engine is worse, whatever the metric's direction. ``engine``
    and ``drop`` are ``None`` when a score of the engine is not a number. ``worse_units`` and
    ``better_units`` count the units whose score changed: a metric that stayed the same can hide
    a different model.
    """

    higher_is_better: bool
    units: int
    reference: Interval
    engine: Interval | None
    drop: Interval | None
    worse_units: int
    better_units: int

    @property
    def says_nothing(self) -> bool:
        """Whether all units have one score, with the framework and the engine alike."""
        changed = self.worse_units or self.better_units
        return not changed and self.units > 1 and self.reference.low == self.reference.high


class OutputParity(Value, frozen=True, kw_only=True):
    """Framework against exported graph for one output at one batch size.

    ``scale`` is the largest finite magnitude of the framework's output, ``max_relative`` is
    ``max_abs / scale`` (``None`` when the scale is 0). ``says nothing``: both are zero
    everywhere, so that any graph that returns zeros would have agreed.
    """

    output: str
    batch_size: int
    max_abs: float
    max_relative: float | None
    scale: float
    verdict: Literal["equal", "says nothing"]


class Parity(Value, frozen=True, kw_only=True):
    """The parity of an export that holds; one that does not is an error, never a value."""

    tolerance: float
    outputs: tuple[OutputParity, ...]


class WarmUp(Value, frozen=True, kw_only=True):
    """What came before the timed calls; not ``settled``: times were still changing."""

    seconds: float
    calls: int
    settled: bool


class Latency(Value, frozen=True, kw_only=True):
    """The time of one call, in milliseconds: on the host, copies included, unless said else.

    ``samples_ms`` has one tuple per round with that round's calls, in the order of measuring;
    round ``i`` of every session of one measurement ran side by side. ``cpu_count`` is how many
    processors the process may use; ``load_average`` is the machine's of the minute before, and
    ``None`` where the system has none.
    """

    p50: Interval
    p95: Interval
    p99: Interval
    batch_size: int
    samples_ms: tuple[tuple[float, ...], ...]
    cpu_count: int
    load_average: float | None
    warm_up: WarmUp | None = None

    @property
    def samples(self) -> int:
        """The number of calls that were timed."""
        return sum(len(calls) for calls in self.samples_ms)


class Speedup(Value, frozen=True, kw_only=True):
    """How many times faster an engine is than its baseline: above 1 is faster.

    ``value`` is the ratio of medians, ``low`` and ``high`` its 95 % interval. ``pair_p10`` and
    ``pair_p90`` are percentiles of the ratios round by round, the spread that one would see.
    """

    value: float
    low: float
    high: float
    pair_p10: float
    pair_p90: float


class GateResult(Value, frozen=True, kw_only=True):
    """One gate, judged. ``value`` and ``limit`` are in the gate's own unit.

    A skipped gate was not judged and blocks nothing: ``passed`` is true, ``value`` is ``None``
    and ``detail`` has the reason. ``advice`` says what to try and is empty unless it failed.
    """

    name: str
    limit: float | None
    value: float | None
    passed: bool
    detail: str
    advice: tuple[str, ...] = ()
    skipped: bool = False
