"""Try ways to quantize a graph: write each, and run all on the batches that choose."""

from __future__ import annotations

import glob
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from trtbuild.backends.distributions import version
from trtbuild.backends.ort_session import open_graph
from trtbuild.backends.scheme import Scheme
from trtbuild.canonical import digest
from trtbuild.engine import Value
from trtbuild.pipeline.choice import VERSION as RULE
from trtbuild.pipeline.choice import Trial, trial
from trtbuild.pipeline.held_out import held_out
from trtbuild.quantization import quantize as quantizer
from trtbuild.quantization.quantize import placement_of, quantize
from trtbuild.quantization.sensitivity import RUINED, Damage, sqnr_db
from trtbuild.quantization.thresholds import thresholds_digest
from trtbuild.store import make_record
from trtbuild.verification.accuracy import compare
from trtbuild.verification.bootstrap import estimate, standard_error
from trtbuild.verification.results import MetricEstimate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from trtbuild.backends import Session
    from trtbuild.batches import Metric
    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.source import Data
    from trtbuild.quantization.placement import Placement
    from trtbuild.quantization.thresholds import Thresholds
    from trtbuild.verification.accuracy import Candidate, Comparison
    from trtbuild.verification.bootstrap import Scores
    from trtbuild.verification.results import TensorErrors

    _Found = tuple[Scores, Candidate]
    """The reference's scores and a candidate, of one comparison."""

VERSION = 1
"""Part of the key of an effect; raised when it starts to mean something else."""

_KIND = "effect"

_NAMED = 3
"""Plans of one run that a progress line names."""

_TRIAL_BYTES = 1 << 30
"""Models that are tried at the same time, by the size of their files in all."""


class _EffectKey(Value, frozen=True, kw_only=True):
    plan: str
    reference_sha256: str
    scheme: Scheme
    fused: bool
    evaluation_sha256: str
    metric_sha256: str
    runtime: str
    quantizer: int
    rule: int
    version: int


class Effect(Value, frozen=True, kw_only=True):
    """What a plan does to the model, on the batches that choose.

    ``noise`` is as in :class:`trtbuild.quantization.sensitivity.Damage`. ``metric`` compares
    with the unquantized graph, on the same units, and is ``None`` where the data has no metric;
    ``drop_error`` is the standard error of its drop, 0 without one.
    """

    noise: tuple[float, ...]
    metric: MetricEstimate | None
    drop_error: float = 0.0

    @property
    def damage(self) -> Damage:
        """What counts when nodes are compared."""
        return Damage(noise=self.noise, drop=self.drop)

    @property
    def worst_noise(self) -> float:
        """The noise of the output that suffers most."""
        return self.damage.worst_noise

    @property
    def sqnr_db(self) -> float | None:
        """The SQNR of the output that suffers most, None where there is no noise."""
        return sqnr_db(self.worst_noise)

    @property
    def drop(self) -> float | None:
        """The drop of the metric, None without one or where it is not a number."""
        if self.metric is None or self.metric.drop is None:
            return None
        return self.metric.drop.value


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One way to quantize a floating-point graph: which nodes, and within which intervals."""

    graph: Graph
    placement: Placement
    intervals: Thresholds

    def write(self, scheme: Scheme, out: Path) -> Graph:
        """Return the Q/DQ graph, written to ``out``."""
        return quantize(self.graph, self.placement, self.intervals, scheme, out)

    def without(self, nodes: AbstractSet[str], scheme: Scheme) -> Plan:
        """Return the plan that leaves ``nodes`` in floating point too, all else as here.

        A tensor that shared the scale of another may stand alone now: it keeps that scale.
        """
        whole, own = placement_of(self.graph, scheme, ()), self.placement
        kept = {*whole.nodes, *whole.absorbed} - {*own.nodes, *own.absorbed} | nodes
        names = tuple(glob.escape(name) for name in sorted(kept))
        placement = placement_of(self.graph, scheme, names)
        intervals = {
            name: self.intervals.get(name) or self.intervals[own.linked[name]]
            for name in placement.observed
        }
        return replace(self, placement=placement, intervals=intervals)

    @property
    def compute(self) -> tuple[str, ...]:
        """The nodes that are quantized by themselves, in the graph's order."""
        return tuple(name for name, weight in self.placement.nodes.items() if weight >= 0)

    @property
    def digest(self) -> str:
        """Equal for plans that give the same network by one scheme."""
        nodes = sorted(self.placement.nodes)
        intervals = {name: self.intervals[name] for name in self.placement.observed}
        return digest("plan/v1", [self.graph.sha256, nodes, thresholds_digest(intervals)])


class _TriedKey(Value, frozen=True, kw_only=True):
    reference_sha256: str
    scheme: Scheme
    plans: tuple[tuple[str, str], ...]
    evaluation_sha256: str
    metric_sha256: str
    runtime: str
    version: int


class _Figures(Value, frozen=True, kw_only=True):
    """A trial as a record holds it; numbers in hexadecimal, since some are not finite."""

    method: str
    scores: tuple[str, ...]
    sqnr_db: str

    @classmethod
    def of(cls, trial: Trial) -> _Figures:
        scores = tuple(float(score).hex() for score in trial.scores)
        return cls(method=trial.method, scores=scores, sqnr_db=float(trial.sqnr_db).hex())

    def trial(self) -> Trial:
        scores = np.array([float.fromhex(score) for score in self.scores], np.float64)
        return Trial(method=self.method, scores=scores, sqnr_db=float.fromhex(self.sqnr_db))


class _Tried(Value, frozen=True, kw_only=True):
    trials: tuple[_Figures, ...]


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Where plans are tried: against ``reference``, on the batches that choose.

    ``fused`` is whether the networks may run with integer kernels, as in
    :class:`trtbuild.pipeline.network.Network`.
    """

    context: Context
    data: Data
    reference: Graph
    scheme: Scheme
    fused: bool

    def tried(self, stage: str, plans: Mapping[str, Plan]) -> dict[str, Trial]:
        """Return what became of each plan, by its name, remembered as the stage ``stage``."""
        key = _TriedKey(
            reference_sha256=self.reference.sha256,
            scheme=self.scheme,
            plans=tuple((name, plan.digest) for name, plan in plans.items()),
            evaluation_sha256=self.data.info.evaluation_sha256,
            metric_sha256=self.data.info.metric_sha256,
            runtime=f"onnxruntime {version('onnxruntime')}",
            version=quantizer.VERSION,
        )

        def make() -> _Tried:
            found = self.run(plans).items()
            return _Tried(trials=tuple(_Figures.of(each) for _, each in found))

        name = f"{stage} for {self.scheme.name}"
        found = self.context.remembered(name, "trials", key, _Tried, make)
        return {each.method: each.trial() for each in found.trials}

    def run(self, plans: Mapping[str, Plan]) -> dict[str, Trial]:
        """Return what became of each plan, by its name; equal plans run once."""
        found = self._found(plans)
        return {name: trial(name, found[plan.digest][1]) for name, plan in plans.items()}

    def effects(self, plans: Mapping[str, Plan]) -> dict[str, Effect]:
        """Return what each plan does to outputs and metric, by its name.

        What was tried before, here or by :meth:`run`, comes from the store: a search that was
        killed goes on where it was.
        """
        keys = {name: self._key(plan) for name, plan in plans.items()}
        known = {name: self._known(key) for name, key in keys.items()}
        self._found({name: plans[name] for name, effect in known.items() if effect is None})
        return {name: known[name] or self._remembered(key) for name, key in keys.items()}

    def _found(self, plans: Mapping[str, Plan]) -> dict[str, _Found]:
        """Return scores and errors by the digest of the plan; remember their effects."""
        unique = {plan.digest: (name, plan) for name, plan in plans.items()}
        found: dict[str, _Found] = {}
        if not unique:
            return found
        with self.context.store.scratch() as folder:
            graphs = {
                key: plan.write(self.scheme, folder / f"{index}.onnx")
                for index, (key, (_, plan)) in enumerate(unique.items())
            }
            reference = open_graph(self.reference.path, fused=True)
            metric = self.data.provider.metric
            for group in _groups(graphs):
                names = [unique[key][0] for key in group]
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                said = "; ".join(names[:_NAMED]) + more
                self.context.say(f"try {said} for {self.scheme.name}")
                sessions: dict[str, Session] = {
                    key: open_graph(graphs[key].path, fused=self.fused) for key in group
                }
                batches = held_out(self.data, self.reference)
                result = compare(reference, sessions, batches, metric)
                for key, candidate in result.candidates.items():
                    found[key] = (result.reference_scores, candidate)
                    value = _effect(result, candidate, metric)
                    self._remember(self._key(unique[key][1]), value)
        return found

    def _key(self, plan: Plan) -> _EffectKey:
        return _EffectKey(
            plan=plan.digest,
            reference_sha256=self.reference.sha256,
            scheme=self.scheme,
            fused=self.fused,
            evaluation_sha256=self.data.info.evaluation_sha256,
            metric_sha256=self.data.info.metric_sha256,
            runtime=f"onnxruntime {version('onnxruntime')}",
            quantizer=quantizer.VERSION,
            rule=RULE,
            version=VERSION,
        )

    def _known(self, key: _EffectKey) -> Effect | None:
        record = self.context.store.get(_KIND, digest(f"{_KIND}/v1", key), Effect)
        return record.read(Effect) if record else None

    def _remembered(self, key: _EffectKey) -> Effect:
        effect = self._known(key)
        if effect is None:
            raise ValueError(f"nobody tried the plan {key.plan}")
        return effect

    def _remember(self, key: _EffectKey, value: Effect) -> None:
        name = digest(f"{_KIND}/v1", key)
        self.context.store.put(make_record(_KIND, name, key, value), Effect)


def _effect(result: Comparison, candidate: Candidate, metric: Metric | None) -> Effect:
    """Return what a comparison says of a candidate's outputs and metric."""
    noise = tuple(_noise(errors) for errors in candidate.errors)
    if metric is None:
        return Effect(noise=noise, metric=None)
    scores = (result.reference_scores, candidate.scores)
    found = estimate(*scores, higher_is_better=metric.higher_is_better)
    error = 0.0 if found.drop is None else standard_error(*scores, result.batch_units)
    return Effect(noise=noise, metric=found, drop_error=error)


def _noise(errors: TensorErrors) -> float:
    if errors.nonfinite:
        return RUINED
    if errors.sqnr_db is None:
        return 0.0 if errors.max_abs == 0 else RUINED
    return min(math.pow(10.0, -errors.sqnr_db / 10), RUINED)


def _groups(graphs: dict[str, Graph]) -> Iterator[list[str]]:
    """Yield the names of graphs that fit into memory together."""
    group: list[str] = []
    total = 0
    for name, graph in graphs.items():
        size = graph.path.stat().st_size
        if group and total + size > _TRIAL_BYTES:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    yield group
