"""The stages of techniques: graphs that quantize better, each remembered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trtbuild.backends.distributions import version
from trtbuild.backends.scheme import Scheme
from trtbuild.engine import Value
from trtbuild.pipeline.ranges import channel_statistics_of
from trtbuild.pipeline.source import calibration
from trtbuild.quantization import bias, migration, weight_rounding
from trtbuild.quantization import quantize as quantizer
from trtbuild.quantization.moments import and_squares, moments_of, with_squares

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.source import Data
    from trtbuild.pipeline.trials import Plan
    from trtbuild.quantization.placement import Placement

MIGRATING = ("equalize", "smooth")
"""Techniques that keep what a graph computes, in the order in which they are applied."""

ADJUSTING = ("rounding", "bias")
"""Techniques that change weights for one network, in the order in which they are applied."""


class _Changed(Value, frozen=True, kw_only=True):
    """How many activations or layers a technique changed."""

    count: int


class _MigratedKey(Value, frozen=True, kw_only=True):
    technique: str
    graph_sha256: str
    nodes: tuple[str, ...]
    channels_sha256: str
    version: int
    runtime: tuple[tuple[str, str], ...]


class _AdjustedKey(Value, frozen=True, kw_only=True):
    technique: str
    original_sha256: str
    plan: str
    scheme: Scheme
    data_sha256: str
    versions: tuple[int, ...]
    runtime: tuple[tuple[str, str], ...]


def migrated(
    context: Context, graph: Graph, data: Data, placement: Placement, technique: str
) -> Graph | None:
    """Return ``graph`` smoothed or equalized, None where nothing is to gain."""
    nodes = _layers(placement)
    axes = migration.tensors_to_measure(graph, nodes, technique)
    if not axes:
        return None
    squared = with_squares(graph, axes, context.work / f"{technique}-{graph.sha256[:16]}.onnx")
    statistics, content = channel_statistics_of(context, squared, data, and_squares(axes))
    key = _MigratedKey(
        technique=technique,
        graph_sha256=graph.sha256,
        nodes=nodes,
        channels_sha256=content,
        version=migration.VERSION,
        runtime=_runtime(),
    )

    def make(out: Path) -> tuple[Graph, _Changed]:
        moments = moments_of(statistics, axes)
        moved, count = migration.migrated(graph, nodes, technique, moments, out)
        return moved, _Changed(count=count)

    result, changed = context.remembered_graph(technique, "migrated", key, _Changed, make)
    return result if changed.count else None


@dataclass(frozen=True, kw_only=True)
class Adjusting:
    """What is needed to change the weights of plans for one network.

    ``original`` is the graph whose layers' outputs are wanted: what the plan's graph was before
    its weights were rounded.
    """

    context: Context
    data: Data
    scheme: Scheme
    original: Graph

    def adjusted(self, plan: Plan, technique: str) -> Plan | None:
        """Return ``plan`` with weights rounded or biases corrected, None if nothing changes."""
        make = {"bias": self._with_bias, "rounding": self._with_rounding}[technique]
        key = _AdjustedKey(
            technique=technique,
            original_sha256=self.original.sha256,
            plan=plan.digest,
            scheme=self.scheme,
            data_sha256=self.data.info.calibration_sha256,
            versions=(quantizer.VERSION, bias.VERSION, weight_rounding.VERSION),
            runtime=_runtime(),
        )
        name = f"{technique} for {self.scheme.name}"
        graph, changed = self.context.remembered_graph(
            name, "adjusted", key, _Changed, lambda out: make(plan, out)
        )
        return replace(plan, graph=graph) if changed.count else None

    def _with_bias(self, plan: Plan, out: Path) -> tuple[Graph, _Changed]:
        axes = bias.inputs_to_measure(self.original, _layers(plan.placement))
        means = {}
        if axes:
            found, _ = channel_statistics_of(self.context, self.original, self.data, axes)
            means = {name: statistics.mean for name, statistics in found.items()}
        with self.context.store.scratch() as folder:
            network = plan.write(self.scheme, folder / "network.onnx")
            graph, count = bias.corrected(plan.graph, self.original, network, means, out)
        return graph, _Changed(count=count)

    def _with_rounding(self, plan: Plan, out: Path) -> tuple[Graph, _Changed]:
        with self.context.store.scratch() as folder:
            network = plan.write(self.scheme, folder / "network.onnx")
            samples = calibration(self.data, plan.graph)
            job = weight_rounding.Job(
                graph=plan.graph,
                network=network,
                nodes=_layers(plan.placement),
                limit=(1 << (self.scheme.weight_bits - 1)) - 1,
                amax={name: max(-low, high) for name, (low, high) in plan.intervals.items()},
            )
            graph, count = weight_rounding.round_weights(job, samples, folder, out)
        return graph, _Changed(count=count)


def _layers(placement: Placement) -> tuple[str, ...]:
    """Return the nodes of a placement that have weights, in the graph's order."""
    return tuple(name for name, weight in placement.nodes.items() if weight != -1)


def _runtime() -> tuple[tuple[str, str], ...]:
    return tuple((name, version(name)) for name in ("numpy", "onnx-ir", "onnxruntime"))
