"""Costs of nodes from groups: what is measured is exact, what is estimated adds up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.quantization import networks
from trtbuild.backends import backend
from trtbuild.backends.ort_session import open_graph
from trtbuild.graph.observe import with_outputs
from trtbuild.quantization.local_noise import NOISE, SIGNAL, doubled
from trtbuild.quantization.quantize import placement_of, quantize
from trtbuild.quantization.sensitivity import Damage, attribute, default_runs
from trtbuild.quantization.thresholds import thresholds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OFFENDERS = {"n17": 3.0, "n60": 1.0, "n61": 0.5}


def local(count: int) -> dict[str, float]:
    """Return local noises that tell of two offenders, and not of the third."""
    random = np.random.default_rng(0)
    found = {f"n{i}": float(value) for i, value in enumerate(random.uniform(1, 4, count))}
    return {**found, "n17": 40.0, "n60": 20.0}


def true_cost(name: str) -> float:
    return OFFENDERS.get(name, 1e-3)


class Bench:
    """Noise that adds up, as that of independent roundings does."""

    def __init__(self) -> None:
        self.groups: list[frozenset[str]] = []

    def measure(self, groups: Sequence[frozenset[str]]) -> list[Damage]:
        self.groups += groups
        return [
            Damage(noise=(sum(map(true_cost, sorted(group))), 0.0), drop=None)
            for group in groups
        ]


def test_the_offenders_of_a_hundred_nodes_are_found_in_24_runs() -> None:
    bench = Bench()
    costs = attribute(local(100), bench.measure, default_runs(100))
    assert len(bench.groups) <= default_runs(100) == 24
    worst = sorted(costs, key=lambda name: -costs[name].worst_noise)[:3]
    assert worst == ["n17", "n60", "n61"]
    for name in worst:
        assert costs[name].measured
        assert costs[name].worst_noise == pytest.approx(OFFENDERS[name])
    total = sum(cost.worst_noise for cost in costs.values())
    assert total == pytest.approx(sum(map(true_cost, costs)))
    assert list(costs) == list(local(100))


def test_few_nodes_are_all_measured_and_more_than_asked_for_never() -> None:
    bench = Bench()
    few = {f"n{i}": 1.0 for i in range(6)}
    assert all(cost.measured for cost in attribute(few, bench.measure, 6).values())
    assert sorted(map(len, bench.groups)) == [1] * 6
    for runs in (1, 2, 9):
        bench = Bench()
        costs = attribute(local(70), bench.measure, runs)
        assert len(bench.groups) <= runs
        assert set(costs) == set(local(70))


def test_nodes_without_any_local_noise_still_share_what_their_group_costs() -> None:
    costs = attribute({"a": 0.0, "b": 0.0}, Bench().measure, 1)
    assert costs["a"].worst_noise == costs["b"].worst_noise == pytest.approx(1e-3)
    assert costs["a"].group == 2


def test_local_noise_is_that_of_a_node_at_its_own_output_with_nothing_else_quantized(
    tmp_path: Path,
) -> None:
    scheme = backend("tensorrt-rtx").SCHEME
    graph = networks.network(tmp_path)
    data = networks.images(16)
    placement = placement_of(graph, scheme, ())
    ranges = networks.measure(graph, placement.observed, [data])
    limits = thresholds(ranges, placement.observed, "minmax", scheme)
    doubles = doubled(graph, placement, tmp_path / "doubled.onnx")
    quantized = quantize(*doubles, limits, scheme, tmp_path / "quantized.onnx")
    sums = open_graph(quantized.path, fused=False).run({"x": data})
    assert set(sums) == {
        node + suffix for node in placement.nodes for suffix in (NOISE, SIGNAL)
    }

    for node, tensor in (("Conv_0", "stem"), ("Conv_5", "left"), ("Conv_14", "last")):
        others = tuple(name for name in placement.nodes if name != node)
        alone = placement_of(graph, scheme, others)
        network = quantize(graph, alone, limits, scheme, tmp_path / "alone.onnx")
        plain, noisy = (
            open_graph(with_outputs(each, (tensor,), tmp_path / "out.onnx").path, fused=False)
            .run({"x": data})[tensor]
            .astype(np.float64)
            for each in (graph, network)
        )
        assert float(sums[node + SIGNAL]) == pytest.approx((plain**2).sum(), rel=1e-4)
        assert float(sums[node + NOISE]) == pytest.approx(
            ((plain - noisy) ** 2).sum(), rel=1e-3
        )
