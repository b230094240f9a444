"""Search for the way to quantize that the batches which choose like best."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from trtbuild.pipeline.choice import choose, floor_db, refined
from trtbuild.pipeline.trials import Plan
from trtbuild.quantization.groups import groups
from trtbuild.quantization.methods import METHODS
from trtbuild.quantization.thresholds import thresholds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtbuild.backends.scheme import Scheme
    from trtbuild.batches import Metric
    from trtbuild.graph import Graph
    from trtbuild.pipeline.choice import Trial
    from trtbuild.pipeline.trials import Trials
    from trtbuild.quantization.placement import Placement
    from trtbuild.quantization.ranges import Ranges
    from trtbuild.quantization.thresholds import Thresholds

_CONTENDERS = 3
"""Uniform methods that later steps try again, the best first."""

_CONTENDER_DB = 3.0
"""How far below the best uniform method one may lie to be tried again."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A graph that can be quantized, and what is known of its tensors.

    ``known`` are intervals that no method chooses; ``words`` tell what was done to the graph or
    where those intervals are from. ``kept`` are nodes that ``placement`` leaves in floating
    point beside those that the recipe does.
    """

    graph: Graph
    placement: Placement
    ranges: Ranges
    known: Thresholds = field(default_factory=dict)
    words: tuple[str, ...] = ()
    kept: frozenset[str] = frozenset()


@dataclass(kw_only=True)
class Search:
    """One scheme's search; ``trials`` collects everything that was tried.

    The steps must be called in the order of the methods below. Each keeps what it found only if
    :func:`trtbuild.pipeline.choice.refined` says that it improves, so the end is never more
    than 0.5 dB below plain max on the unchanged graph.
    """

    runner: Trials
    metric: Metric | None
    trials: dict[str, Trial] = field(default_factory=dict)

    def uniform(
        self, candidate: Candidate, methods: tuple[str, ...], others: Mapping[str, Plan]
    ) -> Found:
        """Try every method on all tensors; ``others`` run along for the report only."""
        plans = {_name(candidate, method): self._plan(candidate, method) for method in methods}
        found = self.runner.tried("choose method", {**plans, **others})
        self.trials.update(found)
        tried = [
            replace(found[name], method=method)
            for name, method in zip(plans, methods, strict=True)
        ]
        chosen = choose(tried, self.metric)
        floor = floor_db(tried)
        sound = [t for t in tried if t.sqnr_db >= max(floor, chosen.sqnr_db - _CONTENDER_DB)]
        ordered = sorted(sound, key=lambda t: (t.method != chosen.method, -t.sqnr_db))
        name = _name(candidate, chosen.method)
        return Found(
            name=name,
            plan=plans[name],
            candidate=candidate,
            method=chosen.method,
            contenders=tuple(t.method for t in ordered[:_CONTENDERS]),
        )

    def migrated(self, current: Found, candidate: Candidate) -> Found:
        """Try another graph with the methods that did best on the one so far."""
        methods = {_name(candidate, each): each for each in current.contenders}
        plans = {name: self._plan(candidate, each) for name, each in methods.items()}
        best = self._better(f"try {candidate.words[-1]}", current, plans)
        if best == current.name:
            return current
        return replace(
            current, name=best, plan=plans[best], candidate=candidate, method=methods[best]
        )

    def grouped(self, current: Found) -> Found:
        """Try the best methods on each group of tensors, then all that helped together."""
        candidate, method = current.candidate, current.method
        members = groups(candidate.graph, candidate.placement.observed)
        others = [each for each in current.contenders if each != method]
        if len(members) < 2 or not others:  # noqa: PLR2004  one group is all tensors
            return current
        mixes = [{group: other} for group in members for other in others]
        mixed = {_mixed(candidate, method, mix): self._mix(current, mix) for mix in mixes}
        same = current.plan.digest
        plans = {name: plan for name, plan in mixed.items() if plan.digest != same}
        best = self._better("try groups", current, plans)
        joint = self._helpful(current, mixes)
        if len(joint) > 1:
            name = _mixed(candidate, method, joint)
            plans[name] = self._mix(current, joint)
            standing = replace(current, name=best)
            best = self._better("try groups together", standing, {name: plans[name]})
        return (
            current if best == current.name else replace(current, name=best, plan=plans[best])
        )

    def adjusted(self, current: Found, plan: Plan, technique: str) -> Found:
        """Try a plan with other weights."""
        name = f"{current.name} + {technique}"
        best = self._better(f"try {technique}", current, {name: plan})
        return replace(current, name=name, plan=plan) if best == name else current

    def _better(self, stage: str, current: Found, plans: dict[str, Plan]) -> str:
        """Return the name of what is best now: one of ``plans``, or what was."""
        self.trials.update(self.runner.tried(stage, plans))
        tried = [self.trials[name] for name in plans]
        return refined(self.trials[current.name], tried, self.metric).method

    def _helpful(self, current: Found, mixes: list[dict[str, str]]) -> dict[str, str]:
        """Return for each group the method that raised the SQNR most, if any did."""
        least = self.trials[current.name].sqnr_db
        best: dict[str, tuple[float, str]] = {}
        for mix in mixes:
            ((group, method),) = mix.items()
            name = _mixed(current.candidate, current.method, mix)
            sqnr_db = self.trials[name].sqnr_db if name in self.trials else least
            if sqnr_db > best.get(group, (least, ""))[0]:
                best[group] = sqnr_db, method
        return {group: method for group, (_, method) in best.items()}

    def _plan(self, candidate: Candidate, method: str) -> Plan:
        return _plan(candidate, method, self.runner.scheme)

    def _mix(self, current: Found, mix: Mapping[str, str]) -> Plan:
        candidate = current.candidate
        members = groups(candidate.graph, candidate.placement.observed)
        intervals = dict(current.plan.intervals)
        for group, method in mix.items():
            intervals.update(
                thresholds(candidate.ranges, members[group], method, self.runner.scheme)
            )
        return replace(current.plan, intervals=intervals)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The best so far: its name in the report, its plan, and what further steps start from.

    ``method`` is its uniform method, ``contenders`` are the methods worth trying again.
    """

    name: str
    plan: Plan
    candidate: Candidate
    method: str
    contenders: tuple[str, ...] = METHODS[:1]


def fixed(candidate: Candidate, method: str, scheme: Scheme) -> Found:
    """Return the plan of one method, untried."""
    name, plan = _name(candidate, method), _plan(candidate, method, scheme)
    return Found(name=name, plan=plan, candidate=candidate, method=method)


def _plan(candidate: Candidate, method: str, scheme: Scheme) -> Plan:
    observed, known = candidate.placement.observed, candidate.known
    rest = [tensor for tensor in observed if tensor not in known]
    intervals = known | thresholds(candidate.ranges, rest, method, scheme)
    return Plan(graph=candidate.graph, placement=candidate.placement, intervals=intervals)


def _name(candidate: Candidate, method: str) -> str:
    return " + ".join(filter(None, (*candidate.words, method)))


def _mixed(candidate: Candidate, method: str, mix: Mapping[str, str]) -> str:
    parts = ", ".join(f"{group} {other}" for group, other in mix.items())
    return f"{_name(candidate, method)}, {parts}"
