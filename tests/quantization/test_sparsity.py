"""2:4 sparsity: the pattern along the right axis, and weights that make up for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from tests.graph import models
from tests.quantization import networks
from trtbuild.backends import tensorrt_rtx
from trtbuild.errors import BuildError
from trtbuild.quantization.casting import Casting, cast_graph
from trtbuild.quantization.input_products import Pass, second_moments
from trtbuild.quantization.prune import broken, prunable, prune
from trtbuild.quantization.sparsity import (
    compensated,
    is_sparse_2_4,
    lost_energy,
    mask_2_4,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.graph.models import Array
    from trtbuild.graph import Graph

MODEL = """g (float[N, 8, 9, 9] x, float[N, 6, 8] t) => (float[N, 5] y, float[N, 6, 12] z, float[N, 12, 8] u) {
    c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, conv) r = Relu(c)
    e = Conv<group = 2>(r, groups) p = GlobalAveragePool(e) f = Flatten(p)
    a = Gemm(f, plain) b = Gemm<transB = 1>(a, turned) y = Gemm(b, odd)
    z = MatMul(t, right) u = MatMul(left, t)
}"""  # noqa: E501  the header of a model is one line

SHAPES = {
    "conv": (12, 8, 3, 3),
    "groups": (8, 6, 1, 1),
    "plain": (8, 16),
    "turned": (6, 16),
    "odd": (6, 5),
    "right": (8, 12),
    "left": (12, 6),
}
SPARSE = {"Conv_0": 1, "Gemm_5": 0, "Gemm_6": 1, "MatMul_8": 0}
"""Nodes that fit, with the axis of the weight that is summed."""


def model(folder: Path) -> Graph:
    weights = {n: models.normal(*s, seed=i) for i, (n, s) in enumerate(SHAPES.items())}
    return models.write(folder / "dense.onnx", MODEL, weights)


def feeds(count: int) -> dict[str, Array]:
    few = models.normal(8, 3, seed=41) @ models.normal(3, 8, seed=44)
    mixed = few + models.normal(8, 8, seed=45) / 5  # channels that resemble each other
    x = np.einsum("nchw,cd->ndhw", models.normal(count, 8, 9, 9, seed=42), mixed)
    t = models.normal(count, 6, 8, seed=43) @ mixed
    return {"x": np.asarray(x, np.float32), "t": np.asarray(t, np.float32)}


def moments(graph: Graph, data: Mapping[str, Array]) -> dict[str, Array]:
    over = Pass(batches=lambda: [data], work=graph.path.parent, progress=lambda _: None)
    groups = second_moments(graph, prunable(graph, ()), over)
    return {name: moment for group in groups for name, moment in group.items()}


def weight(graph: Graph, node: str) -> Array:
    proto = onnx.load(graph.path).graph
    (found,) = (each for each in proto.node if each.name == node)
    constants = {each.name: numpy_helper.to_array(each) for each in proto.initializer}
    return next(constants[name] for name in found.input if name in constants)


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.sampled_from([4, 8, 12]), min_size=1, max_size=4),
    data=st.data(),
    seed=st.integers(0, 1000),
)
def test_a_mask_keeps_the_two_highest_of_every_four_along_its_axis(
    shape: list[int], data: st.DataObject, seed: int
) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    scores = np.random.default_rng(seed).random(shape)
    mask = mask_2_4(scores, axis)
    assert is_sparse_2_4(np.where(mask, scores, 0), axis)
    lines = np.moveaxis(scores, axis, -1).reshape(-1, 4)
    kept = np.moveaxis(mask, axis, -1).reshape(-1, 4)
    for line, chosen in zip(lines, kept, strict=True):
        assert set(line[chosen]) == set(sorted(line)[2:])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 0, 0, 1, 0, 2, 3, 0], True),
        ([0, 0, 1, 1, 1, 1, 0, 0], True),
        ([0, 1, 1, 1, 0, 0, 0, 0], False),
        ([0, 0, 0], False),
    ],
)
def test_the_pattern_counts_within_groups_of_four_and_needs_whole_groups(
    values: list[int], *, expected: bool
) -> None:
    assert is_sparse_2_4(np.array(values), 0) is expected


def test_the_compensation_is_the_least_squares_solution(tmp_path: Path) -> None:
    del tmp_path
    rows = (models.normal(500, 6, seed=1) @ models.normal(6, 24, seed=2)).astype(np.float64)
    rows += models.normal(500, 24, seed=3)
    dense = models.normal(5, 24, seed=4).astype(np.float64)
    matrix = rows.T @ rows / len(rows)
    mask = mask_2_4(np.abs(dense), 1)
    found = compensated(dense, mask, matrix)
    # An independent solution, output by output, of the same damped problem.
    damped = matrix + 0.01 * np.trace(matrix) / 24 * np.eye(24)
    for output, kept, got in zip(dense, mask, found, strict=True):
        solved = np.linalg.solve(damped[np.ix_(kept, kept)], (damped @ output)[kept])
        np.testing.assert_allclose(got[kept], solved, atol=1e-2)
        assert not got[~kept].any()
    assert lost_energy(dense, found, matrix) < lost_energy(dense, dense * mask, matrix) / 2


def test_each_layer_that_fits_is_sparse_along_what_it_sums_and_the_rest_says_why_not(
    tmp_path: Path,
) -> None:
    graph = model(tmp_path)
    result, found = prune(graph, (), (), tmp_path / "sparse.onnx")
    assert [each.node for each in found.sparse] == list(SPARSE)
    assert {each.node: each.reason for each in found.dense} == {
        "Conv_2": "sparse kernels take no groups",
        "Gemm_7": "6 inputs, not a multiple of 4",
        "MatMul_9": "6 inputs, not a multiple of 4",
    }
    for node, axis in SPARSE.items():
        dense, sparse = weight(graph, node), weight(result, node)
        assert is_sparse_2_4(sparse, axis)
        np.testing.assert_array_equal(sparse, np.where(sparse, dense, 0))
    for each in found.dense:
        np.testing.assert_array_equal(weight(result, each.node), weight(graph, each.node))
    assert broken(result, tuple(SPARSE)) == ()
    assert broken(graph, tuple(SPARSE)) == tuple(SPARSE)
    assert broken(result, ("Conv_2", "gone")) == ("Conv_2", "gone")


def test_moments_are_those_of_what_the_kernel_multiplies(tmp_path: Path) -> None:
    graph, data = model(tmp_path), feeds(3)
    found = moments(graph, data)
    (t,) = (data[name].reshape(-1, 8).astype(np.float64) for name in ("t",))
    np.testing.assert_allclose(found["MatMul_8"], t.T @ t / len(t), rtol=1e-4, atol=1e-4)
    # A convolution with one weight of 1 reads exactly one input of the patch.
    padded = np.pad(data["x"].astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    for channel, row, column in ((0, 0, 0), (3, 1, 2), (7, 2, 1)):
        read = padded[:, channel, row : row + 9 : 2, column : column + 9 : 2]
        place = channel * 9 + row * 3 + column
        assert found["Conv_0"][place, place] == pytest.approx(np.mean(read**2), rel=1e-4)


def test_data_makes_sparse_layers_far_better_than_magnitudes_alone(tmp_path: Path) -> None:
    graph, data = model(tmp_path), feeds(16)
    plain, _ = prune(graph, (), (), tmp_path / "plain.onnx")
    made, found = prune(graph, (), [moments(graph, data)], tmp_path / "made.onnx")
    fresh = {name: array[8:] for name, array in feeds(32).items()}
    expected = models.run(graph.path, fresh)["z"]
    before = models.sqnr_db(expected, models.run(plain.path, fresh)["z"])
    after = models.sqnr_db(expected, models.run(made.path, fresh)["z"])
    assert after > before + 3
    lost = next(each.lost for each in found.sparse if each.node == "MatMul_8")
    assert lost is not None
    assert after == pytest.approx(-10 * np.log10(lost), abs=1)


def test_zeros_stay_zeros_through_quantization_and_casting(tmp_path: Path) -> None:
    graph = networks.network(tmp_path)
    sparse, found = prune(graph, ("left*",), (), tmp_path / "sparse.onnx")
    names = tuple(each.node for each in found.sparse)
    assert len(names) >= 4
    int8 = networks.quantized(sparse, tensorrt_rtx.SCHEME, networks.images(4))
    assert broken(int8, names) == ()
    plan = Casting(precision="fp16", amax={}, keep_float=frozenset(), emulated=False)
    assert broken(cast_graph(sparse, plan, tmp_path / "fp16.onnx")[0], names) == ()
    dense = networks.quantized(graph, tensorrt_rtx.SCHEME, networks.images(4))
    assert broken(dense, names) == names


def test_a_tensor_that_others_read_too_stays_dense_for_them(tmp_path: Path) -> None:
    text = """g (int64[N] i, float[N, 8] x) => (float[N, 12] y, float[N, 12] z) {
        y = Gather(w, i) z = MatMul(x, w)
    }"""
    graph = models.write(tmp_path / "a.onnx", text, {"w": models.normal(8, 12)})
    result, _ = prune(graph, (), (), tmp_path / "b.onnx")
    given = {"i": np.array([3, 1]), "x": models.normal(2, 8)}
    expected, got = models.run(graph.path, given), models.run(result.path, given)
    np.testing.assert_array_equal(got["y"], expected["y"])
    assert (got["z"] != expected["z"]).any()


def test_a_dead_input_does_not_hurt(tmp_path: Path) -> None:
    graph, data = model(tmp_path), feeds(4)
    data["t"][:] = 0
    result, found = prune(graph, (), [moments(graph, data)], tmp_path / "b.onnx")
    assert is_sparse_2_4(weight(result, "MatMul_8"), 0)
    assert np.isfinite(weight(result, "MatMul_8")).all()
    assert next(each.lost for each in found.sparse if each.node == "MatMul_8") == 0.0


def test_a_model_without_a_layer_that_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="the recipe keeps it dense"):
        prune(model(tmp_path), ("*",), (), tmp_path / "b.onnx")
