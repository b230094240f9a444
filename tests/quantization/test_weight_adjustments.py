"""Rounding and bias correction: what the layers put out, and the networks written of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.graph import models
from tests.quantization import networks
from trtbuild.backends import backend
from trtbuild.graph.optimize import optimize
from trtbuild.quantization.bias import corrected, inputs_to_measure
from trtbuild.quantization.channel_statistics import channel_statistics
from trtbuild.quantization.quantize import placement_of
from trtbuild.quantization.rounding import rounded
from trtbuild.quantization.weight_rounding import Job, round_weights
from trtbuild.quantization.written import written_weights

if TYPE_CHECKING:
    from pathlib import Path

    from tests.graph.models import Array
    from trtbuild.graph import Graph

SCHEMES = {name: backend(name).SCHEME for name in ("tensorrt-rtx", "onnxruntime")}
SCHEME = SCHEMES["tensorrt-rtx"]


def inputs(rows: int, columns: int) -> Array:
    """Return correlated inputs [rows, columns], as features are."""
    mixed = models.normal(rows, columns, seed=1) @ models.normal(columns, columns, seed=2)
    return np.asarray(mixed.astype(np.float64) + models.normal(1, columns, seed=3))


def nearest(column: Array, _: int) -> Array:
    return np.asarray(np.rint(column * 4) / 4)


def stepwise(weight: Array, moment: Array) -> Array:
    """Round column by column, the rest solved anew each time by least squares."""
    order = np.argsort(-np.diagonal(moment), kind="stable")
    damped = moment + np.eye(len(moment)) * 0.01 * np.diagonal(moment).mean()
    result = weight.copy()
    fixed: list[int] = []
    left = list(order)
    while left:
        current = weight.copy()
        if fixed:
            shift = (weight - result)[:, fixed] @ damped[np.ix_(fixed, left)]
            current[:, left] += np.linalg.solve(damped[np.ix_(left, left)], shift.T).T
        column = left.pop(0)
        result[:, column] = nearest(current[:, column], column)
        fixed.append(column)
    return result


def test_rounding_is_least_squares_column_by_column() -> None:
    """The closed form against the definition: optimal values for all columns not yet rounded.

    Both solve the same equations by other routes; a value halfway between two codes may fall
    either way, so one in a thousand may differ.
    """
    x = inputs(400, 40)
    weight = models.normal(25, 40, seed=5).astype(np.float64)
    found, wanted = rounded(weight, x.T @ x, nearest), stepwise(weight, x.T @ x)
    assert np.mean(found != wanted) <= 0.001


def test_rounding_lowers_the_error_of_outputs_and_stays_on_the_grid() -> None:
    x = inputs(1000, 300)  # more columns than one block holds
    weight = models.normal(50, 300, seed=5).astype(np.float64)
    found = rounded(weight, x.T @ x, nearest)
    assert np.array_equal(found, nearest(found, 0))
    errors = [np.square(x @ (each - weight).T).sum() for each in (found, nearest(weight, 0))]
    assert errors[0] < errors[1] / 2


def test_an_input_that_is_always_zero_is_rounded_as_it_is() -> None:
    x = inputs(100, 6)
    x[:, 2] = 0
    weight = models.normal(3, 6, seed=5).astype(np.float64)
    found = rounded(weight, x.T @ x, nearest)
    assert np.array_equal(found[:, 2], nearest(weight[:, 2], 2))
    nothing = rounded(weight, np.zeros((6, 6)), nearest)
    assert np.array_equal(nothing, nearest(weight, 0))


def job(graph: Graph, name: str, data: Array) -> Job:
    scheme = SCHEMES[name]
    placement = placement_of(graph, scheme, ())
    ranges = networks.measure(graph, placement.observed, [data])
    return Job(
        graph=graph,
        network=networks.quantized(graph, scheme, data),
        nodes=tuple(name for name, weight in placement.nodes.items() if weight != -1),
        limit=(1 << (scheme.weight_bits - 1)) - 1,
        amax={name: statistics.amax for name, statistics in ranges.items()},
    )


@pytest.mark.parametrize("name", SCHEMES)
def test_a_network_of_rounded_weights_holds_just_these(name: str, tmp_path: Path) -> None:
    graph, data = networks.network(tmp_path), networks.images(32)
    work = job(graph, name, data)
    result, count = round_weights(work, [{"x": data}], tmp_path, tmp_path / "rounded.onnx")
    assert count >= 6
    plain, values = networks.constants(graph), networks.constants(result)
    before = written_weights(work.network)
    after = written_weights(networks.quantized(result, SCHEMES[name], data))
    moved = 0
    changed = {node: w for node, w in after.items() if (values[node] != plain[node]).any()}
    assert len(changed) == count
    for node, weight in changed.items():
        np.testing.assert_allclose(weight.values, values[node], rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(weight.scale, before[node].scale, rtol=1e-3)
        moved += int((weight.values != before[node].values).sum())
    assert moved > 100


def test_rounded_weights_do_not_depend_on_batches_or_their_order(tmp_path: Path) -> None:
    graph, data = networks.network(tmp_path), networks.images(29)
    work = job(graph, "tensorrt-rtx", data)
    mixed = np.random.default_rng(3).permutation(data)
    cuts = {"whole": [data], "cut": np.split(data, [3, 4, 20]), "mixed": [mixed]}
    found = {
        name: round_weights(
            work, [{"x": each} for each in batches], tmp_path, tmp_path / f"{name}.onnx"
        )[0].sha256
        for name, batches in cuts.items()
    }
    assert len(set(found.values())) == 1


def test_corrected_biases_do_not_depend_on_batches_or_their_order(tmp_path: Path) -> None:
    graph, data = networks.network(tmp_path), networks.images(29)
    network = networks.quantized(graph, SCHEME, data)
    axes = inputs_to_measure(graph, placement_of(graph, SCHEME, ()).nodes)
    mixed = np.random.default_rng(3).permutation(data)

    def biases(batches: list[Array]) -> Graph:
        feeds = [{"x": batch} for batch in batches]
        found = channel_statistics(graph, axes, feeds, tmp_path, lambda _: None)
        means = {tensor: statistics.mean for tensor, statistics in found.items()}
        result, count = corrected(graph, graph, network, means, tmp_path / "corrected.onnx")
        assert count >= 6
        return result

    cuts = [[data], np.split(data, [3, 4, 20]), [mixed], np.split(mixed, [11])]
    assert len({biases(batches).sha256 for batches in cuts}) == 1
    assert biases([data[:20]]).sha256 != biases([data]).sha256


LAYERS = {
    "grouped Conv": ("Conv<group = 2>(x, w, b)", (6, 4, 3, 3), (8, 9, 9), (6, 7, 7)),
    "Conv without bias": ("Conv(x, w)", (6, 8, 1, 1), (8, 9, 9), (6, 9, 9)),
    "Gemm": ("Gemm(x, w, b)", (20, 6), (20,), (6,)),
    "transposed Gemm": ("Gemm<transB = 1>(x, w, b)", (6, 20), (20,), (6,)),
    "MatMul and Add": ("Add(m, b)", (20, 6), (5, 20), (5, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_corrected_bias_takes_the_mean_error_of_the_weights_away(
    name: str, tmp_path: Path
) -> None:
    """Against the layer run with its quantized weights on the inputs that were measured."""
    operation, shape, sample, out = LAYERS[name]
    sizes = [", ".join(map(str, each)) for each in (sample, out)]
    first = "m = MatMul(x, w)" if name == "MatMul and Add" else ""
    header = f"layer (float[N, {sizes[0]}] x) => (float[N, {sizes[1]}] y)"
    text = f"{header} {{ {first} y = {operation} }}"
    weights = {"w": models.normal(*shape, seed=1), "b": models.normal(6, seed=2)}
    graph = optimize(
        models.write(tmp_path / "source.onnx", text, weights), tmp_path / "layer.onnx"
    )[0]
    # The same at all positions, so that every position of a kernel sees the same mean.
    flat = [1 if len(sample) == 3 and axis else size for axis, size in enumerate(sample)]
    data = 1 + np.tile(models.normal(40, *flat, seed=3), [1, *(np.array(sample) // flat)])
    scheme = msgspec.structs.replace(SCHEME, weight_bits=7)
    network = networks.quantized(graph, scheme, data)
    axes = inputs_to_measure(graph, placement_of(graph, scheme, ()).nodes)
    found = channel_statistics(graph, axes, [{"x": data}], tmp_path, lambda _: None)
    means = {tensor: statistics.mean for tensor, statistics in found.items()}
    result, count = corrected(graph, graph, network, means, tmp_path / "corrected.onnx")
    assert count == 1
    (quantized,) = written_weights(network).values()
    feeds = {"x": data}
    wanted = models.run(graph.path, feeds)["y"].astype(np.float64)
    shifts = []
    for each in (graph, result):
        model = onnx.load(each.path)
        tensor = next(t for t in model.graph.initializer if t.name == "w")
        tensor.CopyFrom(numpy_helper.from_array(quantized.values.astype(np.float32), "w"))
        onnx.save(model, tmp_path / "with_codes.onnx")
        got = models.run(tmp_path / "with_codes.onnx", feeds)["y"]
        axis = 1 if "Conv" in name else got.ndim - 1
        others = tuple(i for i in range(got.ndim) if i != axis)
        shifts.append(np.abs((got - wanted).mean(axis=others)).max())
    assert shifts[0] > 1e-3
    assert shifts[1] < 1e-5
