"""Try ways to quantize a graph: write each, and run all on the batches that choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtbuild.backends.ort_session import open_graph
from trtbuild.canonical import digest
from trtbuild.pipeline.choice import trial
from trtbuild.pipeline.held_out import held_out
from trtbuild.quantization.quantize import quantize
from trtbuild.quantization.thresholds import thresholds_digest
from trtbuild.verification.accuracy import compare

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from trtbuild.backends import Session
    from trtbuild.backends.scheme import Scheme
    from trtbuild.graph import Graph
    from trtbuild.pipeline.choice import Trial
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.source import Data
    from trtbuild.quantization.placement import Placement
    from trtbuild.quantization.thresholds import Thresholds
    from trtbuild.verification.accuracy import Candidate

_TRIAL_BYTES = 1 << 30
"""Models that are tried at the same time, by the size of their files in all."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One way to quantize a floating-point graph: which nodes, and within which intervals."""

    graph: Graph
    placement: Placement
    intervals: Thresholds

    def write(self, scheme: Scheme, out: Path) -> Graph:
        """Return the Q/DQ graph, written to ``out``."""
        return quantize(self.graph, self.placement, self.intervals, scheme, out)

    @property
    def digest(self) -> str:
        """Equal for plans that give the same network by one scheme."""
        nodes = sorted(self.placement.nodes)
        intervals = {name: self.intervals[name] for name in self.placement.observed}
        return digest("plan/v1", [self.graph.sha256, nodes, thresholds_digest(intervals)])


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

    def run(self, plans: Mapping[str, Plan]) -> dict[str, Trial]:
        """Return what became of each plan, by its name; equal plans run once."""
        same: dict[str, list[str]] = {}
        for name, plan in plans.items():
            same.setdefault(plan.digest, []).append(name)
        found: dict[str, Candidate] = {}
        with self.context.store.scratch() as folder:
            graphs = {
                names[0]: plans[names[0]].write(self.scheme, folder / f"{index}.onnx")
                for index, names in enumerate(same.values())
            }
            reference = open_graph(self.reference.path, fused=True)
            metric = self.data.provider.metric
            for group in _groups(graphs):
                self.context.say(f"try {', '.join(group)} for {self.scheme.name}")
                sessions: dict[str, Session] = {
                    name: open_graph(graphs[name].path, fused=self.fused) for name in group
                }
                batches = held_out(self.data, self.reference)
                found.update(compare(reference, sessions, batches, metric).candidates)
        first = {name: names[0] for names in same.values() for name in names}
        return {name: trial(name, found[first[name]]) for name in plans}


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
