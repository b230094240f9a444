"""Gates: conditions on what was measured; an engine that fails one is not for production.

The rules, and why they are these: docs/decisions/0003-gates.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from trtbuild.engine import PACKED, Value
from trtbuild.verification.results import GateResult, MetricEstimate, Speedup, TensorErrors

if TYPE_CHECKING:
    from trtbuild.recipe import Gates


class Evidence(Value, frozen=True, kw_only=True):
    """What is known of one engine when it is judged.

    ``metric`` is ``None`` where the data defines none, ``outputs`` empty where there was no
    evaluation data, ``speedup`` ``None`` where no latency was measured; ``no_latency`` then
    says why. ``precision_achieved`` counts compute layers by the type that they compute in;
    ``unread`` is why the layers could not be read, so that nothing is counted.
    ``throttled`` is why a measured latency does not count.
    """

    metric: MetricEstimate | None
    outputs: tuple[TensorErrors, ...]
    speedup: Speedup | None
    no_latency: str
    precision_requested: str
    precision_achieved: dict[str, int]
    weights_packed: dict[str, int] = msgspec.field(default_factory=dict)
    unread: str = ""
    throttled: str = ""


def judge(gates: Gates, evidence: Evidence) -> tuple[GateResult, ...]:
    """Return one result per gate: the two of integrity always, then those of the recipe.

    ``finite_outputs`` fails on any NaN, or infinity that the framework has not.
    ``precision_achieved`` fails when no compute layer at all runs in the requested precision
    or, where that packs only weights, when no layer reads packed weights.

    ``max_drop`` passes when the measured drop is at most the limit. The estimate decides, not
    the interval's end: an end that must lie within the limit would fail every engine on small
    data, the framework itself included. The interval says how far the decision can be trusted:
    when the limit lies inside it, the result says "not certain: N units", and how many units
    would settle it. ``min_speedup`` passes when the measured ratio of medians is at least the
    limit, with the same rule of certainty.

    A gate that cannot be measured is skipped, with the reason: it says nothing of the engine.
    Without a gate on accuracy nothing is gated on accuracy, and the engine passes.
    """
    results = [_finite_outputs(evidence), _precision_achieved(evidence)]
    if gates.max_drop is not None:
        results.append(_max_drop(gates.max_drop, evidence))
    if gates.min_speedup is not None:
        results.append(_min_speedup(gates.min_speedup, evidence))
    return tuple(results)


def _skipped(name: str, limit: float, reason: str) -> GateResult:
    return GateResult(
        name=name, limit=limit, value=None, passed=True, detail=reason, skipped=True
    )


def _finite_outputs(evidence: Evidence) -> GateResult:
    name = "finite_outputs"
    if not evidence.outputs:
        return _skipped(name, 0, "no evaluation data: no output was computed")
    damaged = [errors for errors in evidence.outputs if errors.nonfinite]
    total = sum(errors.nonfinite for errors in damaged)
    if not damaged:
        elements = sum(errors.elements for errors in evidence.outputs)
        detail = f"no NaN and no infinity of its own in {elements} elements"
        return GateResult(name=name, limit=0, value=0, passed=True, detail=detail)
    worst = max(damaged, key=lambda errors: errors.nonfinite)
    detail = (
        f"{total} elements are NaN or infinite; output {worst.output!r} has "
        f"{worst.nonfinite} of them, of {worst.elements} elements"
    )
    if worst.reference_nonfinite:
        detail += f" (the framework itself computes {worst.reference_nonfinite})"
        advice: tuple[str, ...] = ("repair the model or the data: the framework overflows too",)
    else:
        advice = (
            "keep the nodes that overflow in floating point (keep_float)",
            "precision bf16 or fp32 instead of fp16",
        )
    return GateResult(
        name=name, limit=0, value=float(total), passed=False, detail=detail, advice=advice
    )


def _precision_achieved(evidence: Evidence) -> GateResult:
    asked = evidence.precision_requested
    if evidence.unread:
        reason = f"the engine's layers could not be read: {evidence.unread}"
        return _skipped("precision_achieved", 1, reason)
    if asked in PACKED:
        return _weights_packed(asked, evidence)
    total = sum(evidence.precision_achieved.values())
    if total == 0 and asked == "fp32":
        return _skipped("precision_achieved", 1, "the engine has no compute layers")
    count = evidence.precision_achieved.get(asked, 0)
    detail = f"{count} of {total} compute layers run in {asked}"
    advice: tuple[str, ...] = ()
    if count == 0:
        achieved = ", ".join(
            f"{n} in {kind}" for kind, n in evidence.precision_achieved.items()
        )
        detail += f" ({achieved or 'the engine has no compute layers'})"
        advice = (
            f"a target whose kernels compute in {asked}",
            "fewer keep_float patterns, if they cover every compute node",
            "the precision that the engine has, asked for by name",
        )
    return GateResult(
        name="precision_achieved",
        limit=1,
        value=count,
        passed=count > 0,
        detail=detail,
        advice=advice,
    )


def _weights_packed(asked: str, evidence: Evidence) -> GateResult:
    count = evidence.weights_packed.get(PACKED[asked], 0)
    total = sum(evidence.precision_achieved.values())
    computing = ", ".join(f"{n} in {kind}" for kind, n in evidence.precision_achieved.items())
    detail = f"{count} layers read {PACKED[asked]} weights; {total} compute, {computing}"
    advice = (
        "fewer keep_float patterns, if they cover every product",
        "precision fp16: the engine's weights are not packed",
    )
    return GateResult(
        name="precision_achieved",
        limit=1,
        value=count,
        passed=count > 0,
        detail=detail,
        advice=() if count else advice,
    )


def _max_drop(limit: float, evidence: Evidence) -> GateResult:
    metric = evidence.metric
    if metric is None:
        return _skipped("max_drop", limit, "no metric: the drop of nothing was measured")
    advice = _accuracy_advice(evidence.precision_requested)
    if metric.drop is None:
        detail = "the engine's metric is not a number, since its outputs are not"
        return GateResult(
            name="max_drop", limit=limit, value=None, passed=False, detail=detail, advice=advice
        )
    drop = metric.drop
    passed = drop.value <= limit
    detail = f"drop {drop.value:+.4f} [{drop.low:+.4f}, {drop.high:+.4f}], limit {limit:g}"
    if not passed:
        detail += f", over it by {drop.value - limit:.4f}"
    if drop.low <= limit < drop.high:
        detail += f"; not certain: {metric.units} units"
        detail += _units_needed(metric.units, abs(drop.value - limit), drop.high - drop.value)
        advice = ("more evaluation data, to be certain", *advice)
    return GateResult(
        name="max_drop",
        limit=limit,
        value=drop.value,
        passed=passed,
        detail=detail,
        advice=() if passed else advice,
    )


def _units_needed(units: int, margin: float, half_width: float) -> str:
    """Say how many units would settle it: an interval narrows with the root of their number."""
    if margin == 0:
        return ""
    digits = 10 ** max(0, int(math.log10(units)) - 1)
    needed = math.ceil(units * (half_width / margin) ** 2 / digits) * digits
    return f" (about {needed} would settle it)"


def _accuracy_advice(precision: str) -> tuple[str, ...]:
    if precision in PACKED:
        return (
            "smaller blocks (block_size), or int4 in place of mxfp4",
            "keep in floating point (keep_float) what trtbuild sensitivity puts first",
            "precision fp8 or int8, which have 8 bits",
        )
    if precision in {"int8", "fp8"}:
        return (
            "method = 'auto', or another method of the calibration table",
            "keep in floating point (keep_float) what trtbuild sensitivity puts first",
            "more, and more varied, calibration data",
            "precision fp16",
        )
    if precision in {"fp16", "bf16"}:
        other = "bf16" if precision == "fp16" else "fp16"
        return (
            "keep the nodes that lose precision in fp32 (keep_float)",
            f"precision {other} or fp32",
        )
    return ("the export parity: in fp32 an engine should compute what the framework computes",)


def _min_speedup(limit: float, evidence: Evidence) -> GateResult:
    found = evidence.speedup
    if evidence.throttled:
        return speed_gate(limit, None, "", invalid=evidence.throttled)
    if found is None:
        reason = evidence.no_latency or "no latency was measured"
        return _skipped("min_speedup", limit, reason)
    asked = evidence.precision_requested
    judged = speed_gate(limit, found, "", invalid="")
    if judged.passed:
        return judged
    advice = (
        f"trtbuild inspect: how many layers run in {asked}, what fused",
        *judged.advice,
        "the baseline's precision: the engine buys nothing here",
    )
    return msgspec.structs.replace(judged, advice=advice)


def speed_gate(limit: float, found: Speedup | None, engine: str, *, invalid: str) -> GateResult:
    """Judge the speed-up of ``engine``, which may be unnamed; ``invalid`` is why none counts.

    A run on a device that throttled shows what the device did, not what the engine can: it
    passes no gate.
    """
    label = f"{engine}: " if engine else ""
    if invalid or found is None:
        return GateResult(
            name="min_speedup",
            limit=limit,
            value=None,
            passed=False,
            detail=f"{label}the run is invalid, the device throttled: {invalid}",
            advice=("cool the device, or lock a clock that it can hold, and measure again",),
        )
    passed = found.value >= limit
    detail = f"{label}{found.value:.2f}x [{found.low:.2f}, {found.high:.2f}], limit {limit:g}"
    if not passed:
        detail += f", short of it by {limit - found.value:.2f}"
    if found.low < limit <= found.high:
        detail += "; not certain: measure on a quieter machine"
    return GateResult(
        name="min_speedup",
        limit=limit,
        value=found.value,
        passed=passed,
        detail=detail,
        advice=() if passed else ("a larger batch size (opt of the profile)",),
    )
