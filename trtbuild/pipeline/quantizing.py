"""The stages from ranges to Q/DQ graphs: choose thresholds, write the network."""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING

from trtbuild.backends import NAMES, backend
from trtbuild.backends.fingerprint import version
from trtbuild.backends.scheme import Scheme
from trtbuild.engine import Value
from trtbuild.errors import BuildError
from trtbuild.graph.cost import count_macs
from trtbuild.pipeline.choice import PLAIN_MAX, choose
from trtbuild.pipeline.choice import VERSION as RULE
from trtbuild.pipeline.engines import profile_of
from trtbuild.pipeline.keeping import assigned
from trtbuild.pipeline.legacy import given_by
from trtbuild.pipeline.network import Network
from trtbuild.pipeline.policy_search import decide, named_policy
from trtbuild.pipeline.ranges import ranges_for
from trtbuild.pipeline.sensitivity import Subject
from trtbuild.pipeline.trials import Plan, Trials
from trtbuild.quantization import quantize as quantizer
from trtbuild.quantization.methods import candidates
from trtbuild.quantization.ranges import ranges_digest
from trtbuild.quantization.thresholds import thresholds, thresholds_digest
from trtbuild.report.document import CalibrationRow

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.graph import Graph
    from trtbuild.pipeline.choice import Trial
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.legacy import Given, Legacy
    from trtbuild.pipeline.source import Data
    from trtbuild.quantization.placement import Placement
    from trtbuild.quantization.ranges import Ranges
    from trtbuild.quantization.thresholds import Thresholds
    from trtbuild.report.document import PolicyReport

_NAIVE = f"{PLAIN_MAX}, no node kept"
"""The row of the calibration table that shows what keep_float and policy are for."""


class _ChoiceKey(Value, frozen=True, kw_only=True):
    graph_sha256: str
    scheme: Scheme
    plans: tuple[tuple[str, str], ...]
    evaluation_sha256: str
    metric_sha256: str
    runtime: str
    version: int
    rule: int


class _Choice(Value, frozen=True, kw_only=True):
    method: str
    rows: tuple[CalibrationRow, ...]


class _NetworkKey(Value, frozen=True, kw_only=True):
    graph_sha256: str
    thresholds_sha256: str
    scheme: Scheme
    nodes: tuple[str, ...]
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
    """Return the INT8 network of each scheme, by its name.

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
        work = _Quantizing(context, graph, data, scheme, placements[scheme.name])
        networks[scheme.name] = work.network(ranges, given[scheme.name])
    return networks


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


class _Quantizing:
    """One scheme on its way from ranges to a Q/DQ graph."""

    def __init__(
        self,
        context: Context,
        graph: Graph,
        data: Data | None,
        scheme: Scheme,
        placement: Placement,
    ) -> None:
        self._context = context
        self._graph = graph
        self._data = data
        self._scheme = scheme
        self._placement = placement
        # The twin of a TensorRT graph must compute what is written; integer kernels are what
        # an asymmetric engine runs on this machine.
        self._fused = scheme.activation == "uint8"

    def network(self, ranges: Ranges, given: Given) -> Network:
        methods = candidates(self._context.recipe.quantization.method)
        plans = {
            given.label(method): self._plan(ranges, method, self._placement, given.intervals)
            for method in (methods if given.incomplete else ("",))
        }
        # What keeping nodes is for is shown with ranges of all, which a cache may lack.
        choice = self._choice(plans, {} if given.intervals else self._naive(ranges))
        plan, policy = self._decided(plans[choice.method])
        graph = self._written(plan)
        return Network(
            graph=graph, twin=graph, fused=self._fused, rows=choice.rows, policy=policy
        )

    def _decided(self, plan: Plan) -> tuple[Plan, PolicyReport | None]:
        """Return the plan without what the recipe's policy leaves in floating point."""
        macs = count_macs(self._graph, profile_of(self._context, self._graph))
        if self._data is None:
            return plan, named_policy(self._context, self._scheme, plan, macs)
        subject = Subject(plan=plan, trials=self._trials(self._data), macs=macs)
        found = decide(subject)
        return found.plan, found.report

    def _trials(self, data: Data) -> Trials:
        return Trials(
            context=self._context,
            data=data,
            reference=self._graph,
            scheme=self._scheme,
            fused=self._fused,
        )

    def _plan(
        self, ranges: Ranges, method: str, placement: Placement, known: Thresholds
    ) -> Plan:
        rest = [tensor for tensor in placement.observed if tensor not in known]
        intervals = known | thresholds(ranges, rest, method, self._scheme)
        return Plan(graph=self._graph, placement=placement, intervals=intervals)

    def _naive(self, ranges: Ranges) -> dict[str, Plan]:
        """Return plain max on every node, to show what keeping some is for; none if all are."""
        placement = quantizer.placement_of(self._graph, self._scheme, ())
        if placement.nodes == self._placement.nodes:
            return {}
        return {_NAIVE: self._plan(ranges, PLAIN_MAX, placement, {})}

    def _written(self, plan: Plan) -> Graph:
        key = _NetworkKey(
            graph_sha256=plan.graph.sha256,
            thresholds_sha256=thresholds_digest(plan.intervals),
            scheme=self._scheme,
            nodes=tuple(sorted(plan.placement.nodes)),
            version=quantizer.VERSION,
        )

        def make(out: Path) -> tuple[Graph, _Nothing]:
            return plan.write(self._scheme, out), _Nothing()

        name = f"quantize for {self._scheme.name}"
        return self._context.remembered_graph(name, "network", key, _Nothing, make)[0]

    def _choice(self, plans: dict[str, Plan], naive: dict[str, Plan]) -> _Choice:
        data = self._data
        if len(plans) == 1 or data is None:
            method = next(iter(plans))
            row = CalibrationRow(
                method=method, scheme=self._scheme.name, metric=None, sqnr_db=None, chosen=True
            )
            return _Choice(method=method, rows=(row,))
        key = _ChoiceKey(
            graph_sha256=self._graph.sha256,
            scheme=self._scheme,
            plans=tuple((name, plan.digest) for name, plan in (plans | naive).items()),
            evaluation_sha256=data.info.evaluation_sha256,
            metric_sha256=data.info.metric_sha256,
            runtime=f"onnxruntime {version('onnxruntime')}",
            version=quantizer.VERSION,
            rule=RULE,
        )
        name = f"choose method for {self._scheme.name}"
        return self._context.remembered(
            name, "choice", key, _Choice, lambda: self._try(plans, naive, data)
        )

    def _try(self, plans: dict[str, Plan], naive: dict[str, Plan], data: Data) -> _Choice:
        """Quantize with every method, and run them all against the unquantized graph."""
        trials = self._trials(data).run(plans | naive)
        chosen = choose([trials[name] for name in plans], data.provider.metric)
        rows = tuple(self._row(each, chosen=each is chosen) for each in trials.values())
        return _Choice(method=chosen.method, rows=rows)

    def _row(self, trial: Trial, *, chosen: bool) -> CalibrationRow:
        finite = abs(trial.sqnr_db) != float("inf")
        return CalibrationRow(
            method=trial.method,
            scheme=self._scheme.name,
            metric=trial.metric,
            sqnr_db=trial.sqnr_db if finite else None,
            chosen=chosen,
        )
