"""The flow of ``trtbuild sensitivity``: costs of nodes, a policy by a limit, the front."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtbuild.errors import UsageError
from trtbuild.graph.model import load_model
from trtbuild.pipeline.context import working
from trtbuild.pipeline.keeping import policy_of
from trtbuild.pipeline.node_times import node_times
from trtbuild.pipeline.policy_search import Search, found_policy, kept_by, ranked
from trtbuild.pipeline.precision import scheme_of
from trtbuild.pipeline.quantizing import subject_of
from trtbuild.pipeline.sensitivity import sensitivity
from trtbuild.pipeline.simplify import optimized
from trtbuild.pipeline.source import export_source, open_data
from trtbuild.pipeline.targets import plan_targets
from trtbuild.quantization.sensitivity import sqnr_db
from trtbuild.report.sensitivities import NodeReport, SensitivityReport

if TYPE_CHECKING:
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.node_times import NodeTimes
    from trtbuild.pipeline.partial import Part
    from trtbuild.pipeline.sensitivity import Sensitivity, Subject
    from trtbuild.pipeline.source import Data
    from trtbuild.pipeline.targets import Planned
    from trtbuild.pipeline.trials import Effect
    from trtbuild.report.document import PolicyReport

_FRONT_SHARES = (0.99, 0.97, 0.95, 0.9, 0.8, 0.65, 0.5)
"""Shares of multiply-accumulates in 8 bits at which the front is measured."""

_PROCESSOR = "onnxruntime"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to find beside costs: at most one limit decides on a policy.

    ``runs`` bounds the groups that are measured, 0 for the usual number. ``front`` measures
    policies along the front, for a picture.
    """

    max_drop: float | None = None
    min_sqnr: float | None = None
    keep: int | None = None
    runs: int = 0
    front: bool = False


def examine(part: Part, wanted: Wanted) -> SensitivityReport:
    """Return what the quantization of each node costs and saves, for the first target.

    Raises:
        UsageError: the recipe names no data, or ``max_drop`` is asked for without a metric.
        TrtbuildError: as a build of the recipe.
    """
    policy_of(part.recipe)
    planned = plan_targets(part.recipe, strict=False).planned[0]
    with working(part.recipe, part.store, part.say) as context:
        data = open_data(context)
        if data is None:
            raise UsageError(
                "sensitivity needs data: give --calibration PROVIDER.py|FILE.npz|FOLDER"
            )
        if wanted.max_drop is not None and data.provider.metric is None:
            raise UsageError(
                f"--max-drop: {data.provider.name} has no metric: give --min-sqnr or --keep, "
                f"or a provider with a metric"
            )
        return _Examination(context, data, planned, wanted).report()


class _Examination:
    def __init__(self, context: Context, data: Data, planned: Planned, wanted: Wanted) -> None:
        self._context = context
        self._data = data
        self._planned = planned
        self._wanted = wanted

    def report(self) -> SensitivityReport:
        source = export_source(self._context, self._data)
        graph = optimized(self._context, source.graph)
        scheme = scheme_of(self._context.recipe, self._planned.target.backend)
        subject = subject_of(self._context, graph, self._data, scheme)
        _expect_some_left(self._wanted.keep, len(subject.plan.compute))
        costs = sensitivity(subject, self._wanted.runs)
        order = ranked(subject, costs)
        search = Search(subject=subject, inside=lambda _: True)
        policy = self._policy(subject, costs, order)
        if self._wanted.front:
            for kept in _front(subject, order):
                search.effect(kept)
            if policy is not None:
                search.effect(kept_by(policy))
        search.effect(frozenset())
        tried = search.report(costs, frozenset(), "", 0).trials
        metric = self._data.provider.metric
        times = self._times(subject)
        return SensitivityReport(
            recipe=self._context.recipe.name,
            scheme=scheme.name,
            method=subject.method,
            metric=metric.name if metric else "",
            units=costs.whole.metric.units if costs.whole.metric else 0,
            runs=costs.runs,
            whole=next(trial for trial in tried if trial.kept == 0),
            nodes=_nodes(subject, costs, times),
            estimated=_estimated(subject, costs, order),
            front=tried if self._wanted.front else (),
            policy=policy,
            times_from=self._times_from(times),
        )

    def _policy(
        self, subject: Subject, costs: Sensitivity, order: tuple[str, ...]
    ) -> PolicyReport | None:
        wanted = self._wanted
        units = costs.whole.metric.units if costs.whole.metric else 0
        if wanted.max_drop is not None:
            return found_policy(subject, wanted.max_drop)
        if wanted.keep is not None:
            search = Search(subject=subject, inside=lambda _: True)
            kept = frozenset(order[: wanted.keep])
            search.effect(kept)
            reason = f"the {len(kept)} nodes with most noise per multiply-accumulate"
            return search.report(costs, kept, reason, units)
        if wanted.min_sqnr is None:
            return None
        return _least(subject, costs, order, wanted.min_sqnr)

    def _times(self, subject: Subject) -> NodeTimes | None:
        target = self._planned.target
        if target.backend != _PROCESSOR or self._planned.cannot_run:
            return None
        return node_times(subject, self._planned)

    def _times_from(self, times: NodeTimes | None) -> str:
        if times is not None:
            return (
                f"ms per call on {self._planned.target.arch}, by ONNX Runtime's profile of "
                f"both engines: compare them with each other only"
            )
        return (
            f"no times: {self._planned.cannot_run or 'the device is not profiled'}; what a "
            f"node saves is told by its multiply-accumulates and bytes"
        )


def _expect_some_left(keep: int | None, nodes: int) -> None:
    if keep is not None and keep >= nodes:
        raise UsageError(
            f"--keep {keep}: the network has {nodes} nodes that can be quantized, and one at "
            f"least must be: give at most {nodes - 1}"
        )


def _least(
    subject: Subject, costs: Sensitivity, order: tuple[str, ...], decibels: float
) -> PolicyReport:
    """Return the policy with the most in 8 bits at an SQNR of at least ``decibels``."""
    most_noise = math.pow(10.0, -decibels / 10)

    def inside(effect: Effect) -> bool:
        return effect.worst_noise <= most_noise

    search = Search(subject=subject, inside=inside)
    units = costs.whole.metric.units if costs.whole.metric else 0
    if search.tried(frozenset()):
        return search.report(costs, frozenset(), f"everything has {decibels:g} dB", units)
    kept = search.least(order)
    if kept is None:
        best = min(
            (frozenset(), frozenset(order[:-1])), key=lambda k: search.effect(k).worst_noise
        )
        most = sqnr_db(search.effect(best).worst_noise)
        found = "no noise" if most is None else f"{most:.1f} dB"
        reason = (
            f"no policy reaches {decibels:g} dB, not even one node in 8 bits: the best that "
            f"was tried has {found}, with {len(best)} of {len(order)} nodes in floating point"
        )
        return search.report(costs, best, reason, units)
    kept = search.given_back(kept, costs)
    return search.report(costs, kept, f"the SQNR is at least {decibels:g} dB", units)


def _front(subject: Subject, order: tuple[str, ...]) -> list[frozenset[str]]:
    """Return what to keep so that about each of the shares of the front stays in 8 bits."""
    whole = subject.mac_share(subject.plan.compute)
    found = []
    for share in _FRONT_SHARES:
        kept = 0
        while kept < len(order) - 1 and subject.mac_share(order[kept:]) > share * whole:
            kept += 1
        found.append(frozenset(order[:kept]))
    return list(dict.fromkeys(found))


def _estimated(
    subject: Subject, costs: Sensitivity, order: tuple[str, ...]
) -> tuple[tuple[float, float], ...]:
    """Return (share in 8 bits, SQNR in dB) with the first 0, 1, 2 ... of ``order`` kept."""
    outputs = range(len(costs.whole.noise))
    totals = [sum(costs.costs[name].noise[i] for name in order) for i in outputs]
    points = []
    for kept in range(len(order)):
        rest = order[kept:]
        noise = max(
            costs.whole.noise[i] * sum(costs.costs[n].noise[i] for n in rest) / totals[i]
            if totals[i] > 0
            else 0.0
            for i in outputs
        )
        decibels = sqnr_db(noise)
        if decibels is not None:
            points.append((round(subject.mac_share(rest), 6), round(decibels, 3)))
    return tuple(points)


def _nodes(
    subject: Subject, costs: Sensitivity, times: NodeTimes | None
) -> tuple[NodeReport, ...]:
    found = {node.name: node for node in load_model(subject.plan.graph.path).graph}
    total = sum(cost.worst_noise for cost in costs.costs.values())
    rows = []
    for name, cost in costs.costs.items():
        node = found[name]
        weight = node.inputs[subject.plan.placement.nodes[name]]
        rows.append(
            NodeReport(
                node=name,
                operator=node.op_type,
                noise=cost.worst_noise,
                noise_share=round(cost.worst_noise / total, 6) if total else 0.0,
                sqnr_db=sqnr_db(cost.worst_noise),
                drop=cost.drop,
                measured=cost.measured,
                group=cost.group,
                macs=subject.macs.get(name, 0),
                mac_share=round(subject.mac_share((name,)), 6),
                weight_bytes=weight.const_value.nbytes if weight and weight.const_value else 0,
                float_ms=times.float_ms.get(name) if times else None,
                quantized_ms=times.quantized_ms.get(name) if times else None,
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.noise))
