from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from trtbuild.recipe import Gates
from trtbuild.verification.gates import Evidence, judge
from trtbuild.verification.results import (
    Interval,
    MetricEstimate,
    Speedup,
    TensorErrors,
)

if TYPE_CHECKING:
    from trtbuild.verification.results import (
        GateResult,
    )

ERRORS = TensorErrors(
    output="y",
    elements=100,
    cosine=0.999,
    sqnr_db=30.0,
    max_abs=0.1,
    argmax_agreement=None,
    nonfinite=0,
    reference_nonfinite=0,
)
GOOD = Evidence(
    metric=None,
    outputs=(ERRORS,),
    speedup=None,
    no_latency="no GPU here",
    precision_requested="int8",
    precision_achieved={"fp32": 1, "int8": 5},
)


def metric(drop: float, low: float, high: float) -> MetricEstimate:
    level = Interval(value=0.9, low=0.88, high=0.92)
    return MetricEstimate(
        higher_is_better=True,
        units=500,
        reference=level,
        engine=level,
        drop=Interval(value=drop, low=low, high=high),
        worse_units=5,
        better_units=3,
    )


def judged(name: str, gates: Gates, evidence: Evidence) -> GateResult:
    (result,) = (gate for gate in judge(gates, evidence) if gate.name == name)
    return result


def drop_gate(drop: float, low: float, high: float, precision: str = "int8") -> GateResult:
    evidence = replace(GOOD, metric=metric(drop, low, high), precision_requested=precision)
    return judged("max_drop", Gates(max_drop=0.01), evidence)


def test_integrity_is_always_judged_and_nothing_else_without_a_recipes_gates() -> None:
    results = judge(Gates(), GOOD)
    assert [gate.name for gate in results] == ["finite_outputs", "precision_achieved"]
    assert all(gate.passed and not gate.skipped and not gate.advice for gate in results)


def test_a_drop_whose_interval_lies_within_the_limit_passes_for_certain() -> None:
    gate = drop_gate(0.002, -0.001, 0.005)
    assert gate.passed
    assert "not certain" not in gate.detail
    assert (gate.value, gate.limit) == (0.002, 0.01)
    assert "[-0.0010, +0.0050]" in gate.detail


def test_a_drop_at_the_limit_passes() -> None:
    assert drop_gate(0.01, 0.009, 0.011).passed
    assert not drop_gate(0.010001, 0.009, 0.011).passed


def test_an_interval_that_reaches_over_the_limit_is_said_to_be_uncertain() -> None:
    gate = drop_gate(0.002, -0.010, 0.014)
    assert gate.passed
    # 500 units, half width 0.012, margin 0.008: 500 * 1.5 ** 2 = 1125.
    assert "not certain: 500 units (about 1130 would settle it)" in gate.detail
    assert gate.advice == ()


def test_a_drop_over_the_limit_fails_with_how_much_and_what_to_try() -> None:
    gate = drop_gate(0.052, 0.04, 0.06)
    assert not gate.passed
    assert "over it by 0.0420" in gate.detail
    assert "not certain" not in gate.detail
    assert any("keep_float" in line for line in gate.advice)
    assert any("fp16" in line for line in gate.advice)
    close = drop_gate(0.012, 0.004, 0.02)
    assert not close.passed
    assert "not certain: 500 units" in close.detail
    assert "evaluation data" in close.advice[0]


def test_advice_fits_the_precision() -> None:
    assert any("bf16" in line for line in drop_gate(0.5, 0.4, 0.6, "fp16").advice)
    assert any("parity" in line for line in drop_gate(0.5, 0.4, 0.6, "fp32").advice)


def test_a_gain_passes() -> None:
    assert drop_gate(-0.02, -0.03, -0.01).passed


def test_a_metric_that_is_no_number_fails() -> None:
    broken = replace(metric(0, 0, 0), engine=None, drop=None)
    gate = judged("max_drop", Gates(max_drop=1.0), replace(GOOD, metric=broken))
    assert not gate.passed
    assert gate.value is None
    assert "not a number" in gate.detail


def test_without_a_metric_the_drop_is_not_judged() -> None:
    gate = judged("max_drop", Gates(max_drop=0.01), GOOD)
    assert gate.skipped
    assert gate.passed
    assert gate.detail.startswith("no metric")


def test_nan_outputs_fail_whatever_the_metric_says() -> None:
    damaged = replace(ERRORS, nonfinite=7)
    evidence = replace(GOOD, outputs=(ERRORS, damaged), metric=metric(0, 0, 0))
    gate = judged("finite_outputs", Gates(), evidence)
    assert not gate.passed
    assert gate.value == 7
    assert "output 'y' has 7 of them, of 100 elements" in gate.detail
    assert any("keep_float" in line for line in gate.advice)


def test_nan_of_the_framework_itself_is_named() -> None:
    evidence = replace(GOOD, outputs=(replace(ERRORS, nonfinite=7, reference_nonfinite=9),))
    gate = judged("finite_outputs", Gates(), evidence)
    assert not gate.passed
    assert "framework itself computes 9" in gate.detail
    assert "repair the model or the data" in gate.advice[0]


def test_without_data_no_output_is_claimed_to_be_finite() -> None:
    assert judged("finite_outputs", Gates(), replace(GOOD, outputs=())).skipped


def test_int8_that_no_layer_computes_in_fails() -> None:
    for achieved in ({"fp32": 6}, {}):
        evidence = replace(GOOD, precision_achieved=achieved)
        gate = judged("precision_achieved", Gates(), evidence)
        assert not gate.passed
        assert gate.value == 0
        assert gate.advice
    without = replace(GOOD, precision_requested="fp32", precision_achieved={})
    assert judged("precision_achieved", Gates(), without).skipped


def test_speedup_is_gated_where_it_was_measured() -> None:
    gates = Gates(min_speedup=1.5)
    found = Speedup(value=1.6, low=1.4, high=1.8, pair_p10=1.3, pair_p90=1.9)
    fast = judged("min_speedup", gates, replace(GOOD, speedup=found))
    assert fast.passed
    assert "not certain" in fast.detail
    slow = judged(
        "min_speedup", gates, replace(GOOD, speedup=replace(found, value=1.2, high=1.3))
    )
    assert not slow.passed
    assert "short of it by 0.30" in slow.detail
    assert "not certain" not in slow.detail
    assert slow.advice
    absent = judged("min_speedup", gates, GOOD)
    assert absent.skipped
    assert absent.detail == "no GPU here"


def test_layers_that_could_not_be_read_skip_the_gate_with_their_reason() -> None:
    for precision in ("int8", "int4", "fp32"):
        unread = replace(
            GOOD, precision_requested=precision, precision_achieved={}, unread="no JSON"
        )
        result = judged("precision_achieved", Gates(), unread)
        assert (result.skipped, result.passed, result.value) == (True, True, None)
        assert result.detail == "the engine's layers could not be read: no JSON"
