"""The stage that finds out what the quantization of each node costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from trtbuild.backends.distributions import version
from trtbuild.backends.ort_session import open_graph
from trtbuild.backends.scheme import Scheme
from trtbuild.engine import Value
from trtbuild.pipeline.held_out import held_out
from trtbuild.pipeline.trials import VERSION as TRIALS
from trtbuild.pipeline.trials import Effect
from trtbuild.quantization import quantize as quantizer
from trtbuild.quantization.local_noise import NOISE, SIGNAL, doubled
from trtbuild.quantization.sensitivity import (
    VERSION,
    Cost,
    attribute,
    default_runs,
)
from trtbuild.verification.accuracy import outputs_of
from trtbuild.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trtbuild.pipeline.trials import Plan, Trials
    from trtbuild.quantization.sensitivity import (
        Damage,
    )


class _SensitivityKey(Value, frozen=True, kw_only=True):
    plan: str
    scheme: Scheme
    fused: bool
    evaluation_sha256: str
    metric_sha256: str
    runs: int
    runtime: str
    quantizer: int
    trials: int
    version: int


class Sensitivity(Value, frozen=True, kw_only=True):
    """What quantization costs, node by node.

    ``whole`` is the effect of quantizing all of them. ``costs`` are by node name, in the
    graph's order; ``local`` are the nodes' noises at their own outputs. ``runs`` is how many
    groups were measured.
    """

    whole: Effect
    costs: dict[str, Cost]
    local: dict[str, float]
    runs: int


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A plan whose nodes are looked at, where it is tried, and what its nodes compute.

    ``macs`` are multiply-accumulates of one call by node name, of all compute nodes of the
    graph, quantizable or not. ``method`` is what the plan's intervals are by.
    """

    plan: Plan
    trials: Trials
    macs: Mapping[str, int]
    method: str = ""

    def mac_share(self, nodes: Sequence[str]) -> float:
        """Return the share of all multiply-accumulates that ``nodes`` do."""
        return mac_share(self.macs, nodes)

    def without(self, kept: frozenset[str]) -> Plan:
        """Return the plan that leaves ``kept`` in floating point."""
        return self.plan.without(kept, self.trials.scheme) if kept else self.plan

    def only(self, nodes: frozenset[str]) -> Plan:
        """Return the plan that quantizes ``nodes`` alone, also where that would not pay."""
        everywhere = msgspec.structs.replace(self.trials.scheme, float_stem=0)
        return self.plan.without(frozenset(self.plan.compute) - nodes, everywhere)


def mac_share(macs: Mapping[str, int], nodes: Sequence[str]) -> float:
    """Return the share of all multiply-accumulates that ``nodes`` do."""
    total = sum(macs.values())
    return sum(macs.get(name, 0) for name in nodes) / total if total else 0.0


def sensitivity(subject: Subject, runs: int = 0) -> Sensitivity:
    """Return what each node's quantization costs, from the store or measured now.

    ``runs`` bounds the groups that are measured; 0 stands for :func:`default_runs`.
    """
    trials, nodes = subject.trials, subject.plan.compute
    limit = min(runs or default_runs(len(nodes)), len(nodes))
    key = _SensitivityKey(
        plan=subject.plan.digest,
        scheme=trials.scheme,
        fused=trials.fused,
        evaluation_sha256=trials.data.info.evaluation_sha256,
        metric_sha256=trials.data.info.metric_sha256,
        runs=limit,
        runtime=f"onnxruntime {version('onnxruntime')}",
        quantizer=quantizer.VERSION,
        trials=TRIALS,
        version=VERSION,
    )
    name = f"sensitivity for {trials.scheme.name}"
    return trials.context.remembered(
        name, "sensitivity", key, Sensitivity, lambda: _measured(subject, limit)
    )


def _measured(subject: Subject, limit: int) -> Sensitivity:
    trials, plan = subject.trials, subject.plan
    trials.context.say(
        f"sensitivity: {counted(len(plan.compute), 'node')} at their own outputs"
    )
    local = local_noise(trials, plan)
    whole = trials.effects({"everything": plan})["everything"]
    done = 0

    def measure(groups: Sequence[frozenset[str]]) -> list[Damage]:
        nonlocal done
        trials.context.say(f"sensitivity: group {done + 1} of at most {limit}")
        plans = {
            f"group {done + number}": subject.only(group)
            for number, group in enumerate(groups, start=1)
        }
        done += len(groups)
        return [effect.damage for effect in trials.effects(plans).values()]

    costs = attribute(local, measure, limit)
    return Sensitivity(whole=whole, costs=costs, local=local, runs=done)


def local_noise(trials: Trials, plan: Plan) -> dict[str, float]:
    """Return each node's noise at its own output, over its signal, by the node's name."""
    context = trials.context
    with context.store.scratch() as folder:
        graph, placement = doubled(plan.graph, plan.placement, folder / "doubled.onnx")
        intervals = {
            name: plan.intervals.get(name) or plan.intervals[plan.placement.linked[name]]
            for name in placement.observed
        }
        quantized = quantizer.quantize(
            graph, placement, intervals, trials.scheme, folder / "quantized.onnx"
        )
        session = open_graph(quantized.path, fused=False)
        sums = dict.fromkeys((spec.name for spec in session.outputs), 0.0)
        for number, batch in enumerate(held_out(trials.data, trials.reference)):
            for name, value in outputs_of(session, batch, number).items():
                sums[name] += float(value)
    return {name: _ratio(sums[name + NOISE], sums[name + SIGNAL]) for name in plan.compute}


def _ratio(noise: float, signal: float) -> float:
    """Return noise over signal; a sum of squares may overflow where an output does not."""
    if signal == 0:
        return 0.0
    ratio = noise / signal
    return ratio if math.isfinite(ratio) else 1.0
