"""The stages from ranges to Q/DQ graphs: choose thresholds, write the network."""

from __future__ import annotations

import glob
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trtbuild.backends import NAMES, backend
from trtbuild.backends.scheme import Scheme
from trtbuild.engine import Value
from trtbuild.errors import BuildError
from trtbuild.graph.cost import count_macs
from trtbuild.pipeline.cast import Lowering, lowered, scanned
from trtbuild.pipeline.choice import PLAIN_MAX, refined
from trtbuild.pipeline.engines import profile_of
from trtbuild.pipeline.keeping import assigned
from trtbuild.pipeline.legacy import given_by
from trtbuild.pipeline.network import Network
from trtbuild.pipeline.policy_search import decide, kept_by, named_policy
from trtbuild.pipeline.ranges import ranges_for
from trtbuild.pipeline.refining import Refining
from trtbuild.pipeline.search import Candidate, Search, fixed
from trtbuild.pipeline.sensitivity import Subject
from trtbuild.pipeline.trials import Plan, Trials
from trtbuild.quantization import fp8
from trtbuild.quantization import quantize as quantizer
from trtbuild.quantization.accumulators import wide_products
from trtbuild.quantization.methods import candidates
from trtbuild.quantization.ranges import ranges_digest
from trtbuild.quantization.thresholds import thresholds
from trtbuild.report.document import CalibrationRow

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trtbuild.graph import Graph
    from trtbuild.pipeline.cast import Low
    from trtbuild.pipeline.choice import Trial
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.legacy import Given, Legacy
    from trtbuild.pipeline.search import Found
    from trtbuild.pipeline.source import Data
    from trtbuild.quantization.placement import Placement
    from trtbuild.quantization.ranges import Ranges
    from trtbuild.report.document import PolicyReport

_NAIVE = f"{PLAIN_MAX}, no node kept"
"""The row of the calibration table that shows what keep_float and policy are for."""


class _NetworkKey(Value, frozen=True, kw_only=True):
    plan: str
    scheme: Scheme
    version: int


class _Nothing(Value, frozen=True, kw_only=True):
    """A stage that finds out nothing beside its graph."""


def quantized(
    context: Context,
    graph: Graph,
    data: Data | None,
    schemes: tuple[Scheme, ...],
    cache: Legacy | None,
) -> dict[str, Network]:
    """Return the INT8 or FP8 network of each scheme, by its name.

    Scales come from ``cache`` as far as it has them, the rest from ``data``.

    Raises:
        BuildError: the model is quantized already, or has nothing to quantize.
        DataError: the data does not fit the model, activations are not finite, or ``cache``
            lacks tensors and there is no calibration data.
    """
    placements = placements_of(context, graph, schemes)
    given = {s.name: given_by(context, cache, graph, s, placements[s.name]) for s in schemes}
    networks = {}
    for scheme in schemes:
        ranges: Ranges = {}
        if data is not None and given[scheme.name].incomplete:
            ranges, _ = ranges_for(context, graph, data, scheme, placements[scheme.name])
        work = _Quantizing(
            context=context,
            graph=graph,
            data=data,
            scheme=scheme,
            placement=placements[scheme.name],
        )
        networks[scheme.name] = work.network(ranges, given[scheme.name])
    return networks


def subject_of(context: Context, graph: Graph, data: Data, scheme: Scheme) -> Subject:
    """Return the plan that is chosen for a scheme before any policy, where it can be tried.

    Raises:
        BuildError: the model is quantized already, or has nothing to quantize.
        DataError: the data does not fit the model, or activations are not finite.
    """
    placement = placements_of(context, graph, (scheme,))[scheme.name]
    given = given_by(context, None, graph, scheme, placement)
    ranges, _ = ranges_for(context, graph, data, scheme, placement)
    work = _Quantizing(
        context=context, graph=graph, data=data, scheme=scheme, placement=placement
    )
    return work.subject(ranges, given, data)


def measured(context: Context, graph: Graph, data: Data) -> tuple[Ranges, str]:
    """Return the ranges that any backend needs to quantize ``graph``, and their digest.

    Where several need a tensor the last of ``NAMES`` is asked, which is a TensorRT.

    Raises:
        BuildError: the model is quantized already, or has nothing to quantize.
        DataError: the data does not fit the model, or activations are not finite.
    """
    schemes = tuple(backend(name).SCHEME for name in NAMES)
    placements = placements_of(context, graph, schemes)
    found: Ranges = {}
    for scheme in schemes:
        found |= ranges_for(context, graph, data, scheme, placements[scheme.name])[0]
    return found, ranges_digest(found)


def placements_of(
    context: Context, graph: Graph, schemes: tuple[Scheme, ...]
) -> dict[str, Placement]:
    """Return what each scheme quantizes in ``graph``, by the scheme's name.

    Raises:
        BuildError: the model is quantized already, or has nothing to quantize.
    """
    unquantized = assigned(context, graph).unquantized
    names = tuple(glob.escape(name) for name in sorted(unquantized))
    placements = {s.name: quantizer.placement_of(graph, s, names) for s in schemes}
    for placement in placements.values():
        _expect_nodes(context, placement)
    return placements


def _expect_nodes(context: Context, placement: Placement) -> None:
    if not placement.nodes:
        raise BuildError(
            f"{context.recipe.name}: nothing can be quantized: the graph has no Conv, Gemm or "
            f"MatMul with constant float32 weights (or keep_float and policy leave all alone). "
            f"Export the model with its weights, or ask for fp16"
        )


@dataclass(frozen=True, kw_only=True)
class _Quantizing:
    """One scheme on its way from ranges to a Q/DQ graph.

    ``kept`` is what ``placement`` leaves in floating point beside what the recipe does.
    """

    context: Context
    graph: Graph
    data: Data | None
    scheme: Scheme
    placement: Placement
    kept: frozenset[str] = frozenset()

    @property
    def fused(self) -> bool:
        """Whether trials run integer kernels.

        The twin of a TensorRT graph must compute what is written; integer kernels are what an
        asymmetric engine runs on this machine.
        """
        return self.scheme.activation == "uint8"

    def network(self, ranges: Ranges, given: Given) -> Network:
        found, trials = self.chosen(ranges, given)
        plan, policy = self._decided(found.plan)
        name = found.name
        if policy is not None and policy.source == "search" and policy.kept:
            plan, name, more = self._chosen_again(found, plan, kept_by(policy), given)
            trials |= more
        graph = self._written(plan)
        rows = _rows(name, trials, self.scheme)
        if self.scheme.rest == "fp32":
            network = Network(graph=graph, twin=graph, fused=self.fused, rows=())
        else:
            network = self._lowered(graph, plan.graph)
        return replace(network, rows=rows, policy=policy)

    def subject(self, ranges: Ranges, given: Given, data: Data) -> Subject:
        found, _ = self.chosen(ranges, given)
        return Subject(
            plan=found.plan, trials=self._trials(data), macs=self._macs(), method=found.name
        )

    def chosen(self, ranges: Ranges, given: Given) -> tuple[Found, dict[str, Trial]]:
        """Return the way to quantize ``placement``, and everything that was tried for it."""
        start = Candidate(
            graph=self.graph,
            placement=self.placement,
            ranges=ranges,
            known=given.intervals,
            words=(given.header,) if given.header else (),
            kept=self.kept,
        )
        known = fp8.candidates if self.scheme.activation == "fp8" else candidates
        methods = known(self.context.recipe.quantization.method)
        methods = methods if given.incomplete else ("",)
        if self.data is None:
            return fixed(start, methods[0], self.scheme), {}
        return self._searched(self.data, start, methods)

    def _searched(
        self, data: Data, start: Candidate, methods: tuple[str, ...]
    ) -> tuple[Found, dict[str, Trial]]:
        """Return the way to quantize, and everything that was tried for it."""
        search = Search(runner=self._trials(data), metric=data.provider.metric)
        if start.known or self.scheme.activation == "fp8":
            # A cache's scales fit the unchanged graph only; the techniques are for INT8.
            if len(methods) == 1:
                return fixed(start, methods[0], self.scheme), {}
            naive = {} if start.known else self._naive(start.ranges)
            return search.uniform(start, methods, naive), search.trials
        work = Refining(context=self.context, data=data, scheme=self.scheme, search=search)
        prepared = work.prepared(start)
        if len(methods) == 1:
            found = fixed(prepared, methods[0], self.scheme)
        else:
            found = search.uniform(prepared, methods, self._naive(start.ranges))
            found = work.refined(found)
        return work.finished(found), search.trials

    def _decided(self, plan: Plan) -> tuple[Plan, PolicyReport | None]:
        """Return the plan without what the recipe's policy leaves in floating point."""
        if self.data is None:
            return plan, named_policy(self.context, self.scheme, plan, self._macs())
        found = decide(Subject(plan=plan, trials=self._trials(self.data), macs=self._macs()))
        return found.plan, found.report

    def _chosen_again(
        self, found: Found, plan: Plan, kept: frozenset[str], given: Given
    ) -> tuple[Plan, str, dict[str, Trial]]:
        """Choose once more with ``kept`` in floating point; return the better of both plans.

        A node that suffers in 8 bits decides which method looks best: without it, another may.
        """
        if self.data is None or given.intervals:
            return plan, found.name, {}
        context, graph, scheme = self.context, self.graph, self.scheme
        left = assigned(context, graph).unquantized | kept
        placement = quantizer.placement_of(graph, scheme, tuple(map(glob.escape, sorted(left))))
        ranges, _ = ranges_for(context, graph, self.data, scheme, placement)
        work = replace(self, placement=placement, kept=kept)
        again, _ = work.chosen(ranges, given)
        names = tuple(f"{each.name}, policy's nodes kept" for each in (found, again))
        if again.plan.digest == plan.digest:
            return plan, found.name, {}
        plans = dict(zip(names, (plan, again.plan), strict=True))
        tried = self._trials(self.data).tried("choose method again", plans)
        metric = self.data.provider.metric
        better = refined(tried[names[0]], [tried[names[1]]], metric).method
        return plans[better], better, tried

    def _macs(self) -> dict[str, int]:
        return count_macs(self.graph, profile_of(self.context, self.graph))

    def _trials(self, data: Data) -> Trials:
        return Trials(
            context=self.context,
            data=data,
            reference=self.graph,
            scheme=self.scheme,
            fused=self.fused,
        )

    def _lowered(self, graph: Graph, original: Graph) -> Network:
        """Return a Q/DQ graph with the scheme's type around the pairs, and its twin.

        ``original`` is the graph before its pairs, in which tensors are measured.
        """
        rest: Low = "bf16" if self.scheme.rest == "bf16" else "fp16"
        extremes = scanned(self.context, original, self.data, rest)
        wide = wide_products(graph, extremes.amax) if rest == "fp16" else {}
        if wide:
            worst = max(wide, key=lambda node: wide[node])
            self.context.find(
                "cast",
                f"{len(wide)} products of quantized numbers hand out FP32, since their sums "
                f"would overflow FP16 before they are scaled: {worst!r} {wide[worst]:.4g}",
            )
        lowering = Lowering(
            precision=rest,
            extremes=extremes,
            keep_float=assigned(self.context, self.graph).fp32,
            wide=frozenset(wide),
        )
        return lowered(self.context, graph, lowering)

    def _naive(self, ranges: Ranges) -> dict[str, Plan]:
        """Return plain max on every node, to show what keeping some is for; none if all are."""
        placement = quantizer.placement_of(self.graph, self.scheme, ())
        if placement.nodes == self.placement.nodes:
            return {}
        intervals = thresholds(ranges, placement.observed, PLAIN_MAX, self.scheme)
        return {_NAIVE: Plan(graph=self.graph, placement=placement, intervals=intervals)}

    def _written(self, plan: Plan) -> Graph:
        key = _NetworkKey(plan=plan.digest, scheme=self.scheme, version=quantizer.VERSION)

        def make(out: Path) -> tuple[Graph, _Nothing]:
            return plan.write(self.scheme, out), _Nothing()

        name = f"quantize for {self.scheme.name}"
        return self.context.remembered_graph(name, "network", key, _Nothing, make)[0]


def _rows(
    chosen: str, trials: Mapping[str, Trial], scheme: Scheme
) -> tuple[CalibrationRow, ...]:
    """Return what the report shows: everything tried, and what was chosen."""
    figures: dict[str, tuple[float | None, float | None]] = {
        name: (trial.metric, trial.sqnr_db if math.isfinite(trial.sqnr_db) else None)
        for name, trial in trials.items()
    }
    figures.setdefault(chosen, (None, None))
    return tuple(
        CalibrationRow(
            method=name,
            scheme=scheme.name,
            metric=metric,
            sqnr_db=sqnr_db,
            chosen=name == chosen,
        )
        for name, (metric, sqnr_db) in figures.items()
    )
