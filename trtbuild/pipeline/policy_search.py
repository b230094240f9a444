"""Find the policy with the most in 8 bits that stays inside the budget of the metric.

The rule, and why it is this: docs/decisions/0011-policy-search.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trtbuild.backends.distributions import version
from trtbuild.backends.scheme import Scheme
from trtbuild.engine import Value
from trtbuild.pipeline.keeping import WORDS
from trtbuild.pipeline.sensitivity import mac_share, sensitivity
from trtbuild.pipeline.trials import VERSION as TRIALS
from trtbuild.quantization import quantize as quantizer
from trtbuild.quantization.quantize import placement_of
from trtbuild.quantization.sensitivity import VERSION as SENSITIVITY
from trtbuild.quantization.sensitivity import sqnr_db
from trtbuild.report.document import KeptNode, PolicyReport, PolicyTrial
from trtbuild.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.sensitivity import Sensitivity, Subject
    from trtbuild.pipeline.trials import Effect, Plan

VERSION = 1
"""Part of the key of a found policy; raised when the rule changes."""

_GIVE_BACK_TRIALS = 8


_LEAST_SHRINKING = 0.5
"""A change of the noise by less cannot be told from luck by a metric that has just missed."""


class _SearchKey(Value, frozen=True, kw_only=True):
    plan: str
    scheme: Scheme
    fused: bool
    macs: dict[str, int]
    max_drop: str
    evaluation_sha256: str
    metric_sha256: str
    runtime: str
    quantizer: int
    trials: int
    sensitivity: int
    version: int


@dataclass(frozen=True, kw_only=True)
class Decided:
    """The plan to build, and who decided what stays in floating point; None if nobody did."""

    plan: Plan
    report: PolicyReport | None


def decide(subject: Subject) -> Decided:
    """Return the plan as the recipe's policy has it, searched for where it leaves that open."""
    context = subject.trials.context
    quantization, max_drop = context.recipe.quantization, context.budget
    if quantization.techniques not in {"auto", ()}:
        # They were fitted to what is quantized.
        if quantization.policy == "auto" and max_drop is not None:
            context.find("policy", "no policy was searched for: the recipe names techniques")
    elif quantization.policy == "auto" and max_drop is not None:
        if subject.trials.data.provider.metric is not None:
            report = found_policy(subject, max_drop)
            return Decided(plan=subject.without(kept_by(report)), report=report)
        context.find("policy", "no policy was searched for: the data has no metric")
    named = named_policy(context, subject.trials.scheme, subject.plan, subject.macs)
    return Decided(plan=subject.plan, report=named)


def named_policy(
    context: Context, scheme: Scheme, plan: Plan, macs: Mapping[str, int]
) -> PolicyReport | None:
    """Return what the recipe itself leaves in floating point, None where that is nothing."""
    compute = [n for n, w in placement_of(plan.graph, scheme, ()).nodes.items() if w >= 0]
    named = [name for name in compute if name not in plan.placement.nodes]
    if not named:
        return None
    word = context.recipe.quantization.policy
    return PolicyReport(
        scheme=scheme.name,
        source="recipe",
        reason=f"the recipe says so ({'keep_float' if word in WORDS else word})",
        mac_share=round(mac_share(macs, plan.compute), 6),
        kept=tuple(
            KeptNode(node=name, mac_share=round(mac_share(macs, (name,)), 6)) for name in named
        ),
    )


def found_policy(subject: Subject, max_drop: float) -> PolicyReport:
    """Return the policy with the most in 8 bits inside ``max_drop``, from the store or now.

    The data has a metric. Where no policy is inside, it is the one that lost least of those
    tried, and ``budget_met`` is false.
    """
    trials = subject.trials
    key = _SearchKey(
        plan=subject.plan.digest,
        scheme=trials.scheme,
        fused=trials.fused,
        macs=dict(subject.macs),
        max_drop=max_drop.hex(),
        evaluation_sha256=trials.data.info.evaluation_sha256,
        metric_sha256=trials.data.info.metric_sha256,
        runtime=f"onnxruntime {version('onnxruntime')}",
        quantizer=quantizer.VERSION,
        trials=TRIALS,
        sensitivity=SENSITIVITY,
        version=VERSION,
    )
    name = f"policy for {trials.scheme.name}"
    return trials.context.remembered(
        name, "policy", key, PolicyReport, lambda: _found(subject, max_drop)
    )


def kept_by(report: PolicyReport) -> frozenset[str]:
    """Return the names of the nodes that a found policy leaves in floating point."""
    return frozenset(node.node for node in report.kept)


def _found(subject: Subject, max_drop: float) -> PolicyReport:
    whole = subject.trials.effects({"everything": subject.plan})["everything"]
    search = Search(subject=subject, inside=_within(max_drop, whole))
    units = whole.metric.units if whole.metric else 0
    if search.tried(frozenset()):
        reason = f"everything is quantized: {_drop_words(whole)}, inside {max_drop:g}"
        return search.report(None, frozenset(), reason, units)
    costs = sensitivity(subject)
    kept = search.least(ranked(subject, costs))
    if kept is None:
        best = search.best()
        reason = (
            f"no policy is inside {max_drop:g}, not even one node in 8 bits: in floating point "
            f"the drop is 0, and of what was tried this lost least"
        )
        return search.report(costs, best, reason, units)
    kept = search.given_back(kept, costs)
    effect = search.effect(kept)
    reason = (
        f"with everything quantized {_drop_words(whole)}, with {len(kept)} of "
        f"{len(subject.plan.compute)} nodes in floating point {_drop_words(effect)}, inside "
        f"{max_drop:g}"
    )
    return search.report(costs, kept, reason, units)


def _within(max_drop: float, whole: Effect) -> Callable[[Effect], bool]:
    """Return whether an effect is inside the budget, and not by luck.

    The drop is inside, and either it still is with one standard error more, so that other data
    will probably agree, or the noise has shrunk by as much as that upper drop of everything
    quantized must, and at least to the half.
    """
    allowed = whole.worst_noise
    upper = _upper_drop(whole)
    if upper is not None and upper > max_drop:
        allowed *= min(max_drop / upper, _LEAST_SHRINKING)

    def inside(effect: Effect) -> bool:
        drop, upper = effect.drop, _upper_drop(effect)
        if drop is None or upper is None or drop > max_drop:
            return False
        return upper <= max_drop or effect.worst_noise <= allowed

    return inside


def _upper_drop(effect: Effect) -> float | None:
    """Return the drop and one standard error, None where the metric is not a number."""
    return None if effect.drop is None else effect.drop + effect.drop_error


def ranked(subject: Subject, costs: Sensitivity) -> tuple[str, ...]:
    """Return the nodes in the order in which they should leave 8 bits: worst noise per MAC."""
    share = {name: max(subject.mac_share((name,)), 1e-9) for name in costs.costs}
    return tuple(sorted(costs.costs, key=lambda n: -costs.costs[n].worst_noise / share[n]))


@dataclass(kw_only=True)
class Search:
    """Policies of one subject that were tried, and whether they are inside what was asked."""

    subject: Subject
    inside: Callable[[Effect], bool]
    _effects: dict[frozenset[str], Effect] = field(default_factory=dict)
    _shares: dict[frozenset[str], float] = field(default_factory=dict)

    def effect(self, kept: frozenset[str]) -> Effect:
        """Return what quantizing everything but ``kept`` does; measured once."""
        if kept not in self._effects:
            name = f"{counted(len(kept), 'node')} kept"
            self._effects[kept] = self.subject.trials.effects(
                {name: self.subject.without(kept)}
            )[name]
        return self._effects[kept]

    def tried(self, kept: frozenset[str]) -> bool:
        """Return whether quantizing everything but ``kept`` is inside."""
        return self.inside(self.effect(kept))

    def least(self, order: Sequence[str]) -> frozenset[str] | None:
        """Return the shortest beginning of ``order`` to keep, None if all but one are too few.

        By bisection: the longer the beginning, the less noise.
        """
        low, high = 0, len(order) - 1  # low is outside; at least one node stays in 8 bits
        if high < 1 or not self.tried(frozenset(order[:high])):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            if self.tried(frozenset(order[:middle])):
                high = middle
            else:
                low = middle
        return frozenset(order[:high])

    def given_back(self, kept: frozenset[str], costs: Sensitivity) -> frozenset[str]:
        """Return ``kept`` without nodes that turn out not to be needed.

        Those that save most for their noise are tried first. The last one of the bisection is
        needed: the beginning without it was outside.
        """
        order = [name for name in reversed(ranked(self.subject, costs)) if name in kept]
        for name in order[1 : 1 + _GIVE_BACK_TRIALS]:
            if self.tried(kept - {name}):
                kept -= {name}
        return kept

    def best(self) -> frozenset[str]:
        """Return what was kept in the trial that lost least, of equals with most in 8 bits."""
        return min(
            self._effects,
            key=lambda kept: (
                drop if (drop := self._effects[kept].drop) is not None else float("inf"),
                -self.share(kept),
            ),
        )

    def least_noise(self) -> frozenset[str]:
        """Return what was kept in the trial with the least noise."""
        return min(self._effects, key=lambda kept: self._effects[kept].worst_noise)

    def share(self, kept: frozenset[str]) -> float:
        """Return the share of all multiply-accumulates in 8 bits when ``kept`` is not."""
        if kept not in self._shares:
            plan = self.subject.without(kept)
            self._shares[kept] = self.subject.mac_share(plan.compute)
        return self._shares[kept]

    def report(
        self, costs: Sensitivity | None, kept: frozenset[str], reason: str, units: int
    ) -> PolicyReport:
        """Return what was found and how."""
        order = sorted(self._effects, key=lambda tried: (len(tried), sorted(tried)))
        return PolicyReport(
            scheme=self.subject.trials.scheme.name,
            source="search",
            reason=reason,
            mac_share=round(self.share(kept), 6),
            kept=kept_nodes_of(self.subject, costs, kept),
            trials=tuple(self._trial(tried) for tried in order),
            runs=costs.runs if costs else 0,
            units=units,
            budget_met=self.tried(kept),
        )

    def _trial(self, kept: frozenset[str]) -> PolicyTrial:
        effect = self._effects[kept]
        return PolicyTrial(
            kept=len(kept),
            mac_share=round(self.share(kept), 6),
            sqnr_db=effect.sqnr_db,
            drop=effect.metric.drop if effect.metric else None,
            inside=self.inside(effect),
        )


def kept_nodes_of(
    subject: Subject, costs: Sensitivity | None, kept: frozenset[str]
) -> tuple[KeptNode, ...]:
    """Return the rows of ``kept``, those whose quantization costs most first."""
    rows = []
    for name in subject.plan.compute:
        if name not in kept:
            continue
        cost = costs.costs.get(name) if costs else None
        rows.append(
            KeptNode(
                node=name,
                mac_share=round(subject.mac_share((name,)), 6),
                sqnr_db=sqnr_db(cost.worst_noise) if cost else None,
                drop=cost.drop if cost else None,
                measured=cost.measured if cost else False,
            )
        )
    return tuple(sorted(rows, key=lambda row: row.sqnr_db if row.sqnr_db is not None else 1e9))


def _drop_words(effect: Effect) -> str:
    found = effect.metric.drop if effect.metric else None
    if found is None:
        return "the metric is not a number"
    return f"the drop is {found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
