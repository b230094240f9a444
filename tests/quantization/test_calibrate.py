"""Ranges of real networks: bit-equal for any cut and order of the data, errors by name."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.graph import models
from tests.quantization import networks
from trtbuild.backends import onnxruntime
from trtbuild.errors import DataError
from trtbuild.quantization.calibrate import Collection, calibrate
from trtbuild.quantization.casting import float_tensors
from trtbuild.quantization.quantize import placement_of
from trtbuild.quantization.ranges import ranges_digest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.graph.models import Array
    from trtbuild.graph import Graph

# The graph is written once and only read; hypothesis then draws cuts and orders of the data.
SHARED_FOLDER = settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def cut(data: Array, lengths: list[int]) -> list[Array]:
    edges = [0, *np.minimum(np.cumsum(lengths), len(data)).tolist(), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if b > a]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return networks.network(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    text = """g (float[N, 77] x) => (float[N, 5] y) {
        a = Gemm<transB = 1>(x, w1, b1) r = Tanh(a) m = MatMul(r, w2) y = Softmax(m)
    }"""
    weights = {
        "w1": models.normal(133, 77),
        "b1": models.normal(133, seed=1),
        "w2": models.normal(133, 5, seed=2),
    }
    return models.write(tmp_path_factory.mktemp("products") / "m.onnx", text, weights)


@SHARED_FOLDER
@given(lengths=st.lists(st.integers(1, 15), max_size=9), order=st.permutations(range(21)))
def test_ranges_of_a_network_do_not_depend_on_cut_or_order(
    network: Graph, lengths: list[int], order: list[int]
) -> None:
    data = networks.images(21)
    tensors = placement_of(network, onnxruntime.SCHEME, ()).observed
    whole = networks.measure(network, tensors, [data])
    pieces = networks.measure(network, tensors, cut(data[np.array(order)], lengths))
    assert ranges_digest(whole) == ranges_digest(pieces)
    assert {int(r.counts.sum()) % 21 for r in whole.values()} == {0}


@SHARED_FOLDER
@given(lengths=st.lists(st.integers(1, 15), max_size=9), order=st.permutations(range(21)))
def test_ranges_of_matrix_products_do_not_depend_on_cut_or_order(
    products: Graph, lengths: list[int], order: list[int]
) -> None:
    data = models.normal(21, 77, seed=4)
    tensors = float_tensors(products)
    whole = networks.measure(products, tensors, [data])
    pieces = networks.measure(products, tensors, cut(data[np.array(order)], lengths))
    assert ranges_digest(whole) == ranges_digest(pieces)


def test_ranges_are_those_of_the_tensors(products: Graph) -> None:
    data = models.normal(21, 77, seed=4)
    (found,) = networks.measure(products, ("a",), [data]).values()
    weights = models.normal(133, 77)
    expected = data @ weights.T + models.normal(133, seed=1)
    assert found.maximum == pytest.approx(expected.max(), rel=1e-5)
    assert found.minimum == pytest.approx(expected.min(), rel=1e-5)
    assert found.counts.sum() == expected.size


def test_tensors_without_samples_along_their_first_axis_count_once(tmp_path: Path) -> None:
    """5 samples: the chunk is filled up to 8, and what is not cut must not count copies."""
    text = """g (float[N, 8, 4] x)
        => (float[8, N, 4] t, float[?, 4] f, float[8, 4] r, float[N, 8, 4] y) {
        t = Transpose<perm = [1, 0, 2]>(x) f = Reshape(x, rows)
        r = ReduceSum<keepdims = 0>(x, zero) y = Relu(x)
    }"""
    weights = {"rows": np.array([-1, 4]), "zero": np.array([0])}
    graph = models.write(tmp_path / "m.onnx", text, weights)
    data = np.abs(models.normal(5, 8, 4))
    found = networks.measure(graph, ("t", "f", "r", "y"), [data])
    sizes = {name: int(item.counts.sum()) for name, item in found.items()}
    assert sizes == {"t": data.size, "f": data.size, "r": 32, "y": data.size}
    assert found["r"].maximum == pytest.approx(data.sum(axis=0).max(), rel=1e-6)


def test_a_model_of_one_batch_size_takes_any_number_of_samples(tmp_path: Path) -> None:
    text = "g (float[4, 6] x) => (float[4, 3] y) { y = MatMul(x, w) }"
    weight = models.normal(6, 3)
    graph = models.write(tmp_path / "m.onnx", text, {"w": weight})
    data = models.normal(11, 6, seed=2)
    seen: list[int] = []
    feeds = [{"x": data[:3]}, {"x": data[3:]}]
    found = calibrate(graph, ("y",), feeds, Collection(work=tmp_path, progress=seen.append))
    assert found["y"].counts.sum() == 33
    assert found["y"].maximum == pytest.approx((data @ weight).max(), rel=1e-5)
    assert seen == [4, 8, 11]


def test_an_input_needs_no_run_of_the_model(tmp_path: Path) -> None:
    text = "g (float[N, 6] x) => (float[N, 3] y) { y = MatMul(x, w) }"
    graph = models.write(tmp_path / "m.onnx", text, {"w": models.normal(6, 3)})
    data = models.normal(9, 6)
    (found,) = networks.measure(graph, ("x",), [data]).values()
    assert (found.minimum, found.maximum) == (data.min(), data.max())
    assert found.counts.sum() == data.size


def test_sequences_of_different_lengths_run_apart(tmp_path: Path) -> None:
    text = """g (float[N, S, 4] x, float[N, S] mask) => (float[N, S, 2] y) {
        m = Unsqueeze(mask, last) k = Mul(x, m) y = MatMul(k, w)
    }"""
    weights = {"w": models.normal(4, 2), "last": np.array([-1])}
    graph = models.write(tmp_path / "m.onnx", text, weights)
    batches = [
        {
            "x": models.normal(number, length, 4, seed=length),
            "mask": np.ones((number, length), "f4"),
        }
        for number, length in ((3, 5), (9, 2), (3, 5), (1, 7))
    ]
    tensors = ("k", "y")
    whole = networks.collect(graph, tensors, batches)
    single = [
        {name: array[i : i + 1] for name, array in batch.items()}
        for batch in reversed(batches)
        for i in range(len(batch["x"]))
    ]
    assert ranges_digest(whole) == ranges_digest(networks.collect(graph, tensors, single))
    assert whole["k"].counts.sum() == sum(batch["x"].size for batch in batches)


def test_an_input_without_samples_stays_whole(tmp_path: Path) -> None:
    text = "g (float[N, 4] x, float[1] rate) => (float[N, 4] y) { y = Mul(x, rate) }"
    graph = models.write(tmp_path / "m.onnx", text, {})
    batches = [{"x": models.normal(n, 4), "rate": np.full(1, 2.0, "f4")} for n in (1, 1, 3)]
    found = networks.collect(graph, ("x", "y"), batches)
    assert found["y"].counts.sum() == 20
    assert found["y"].amax == 2 * found["x"].amax


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_an_error_that_names_tensor_and_samples(
    bad: float, tmp_path: Path
) -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { h = Relu(x) y = Mul(h, h) }"
    graph = models.write(tmp_path / "m.onnx", text, {})
    data = models.normal(20, 4)
    data[17, 2] = 1e30  # its square overflows
    with pytest.raises(DataError, match=r"sample 17: 'y' has 0 NaN and 1 infinite"):
        networks.measure(graph, ("h", "y"), [data])
    data[3, 1] = bad
    with pytest.raises(DataError, match=r"sample 3: 'x' has 1 NaN|'x' has 0 NaN and 1 inf"):
        networks.measure(graph, ("x", "h"), [data])


def test_no_data_is_an_error(network: Graph) -> None:
    for batches in ([], [{"x": np.zeros((0, *networks.IMAGE), np.float32)}]):
        with pytest.raises(DataError, match="empty"):
            networks.collect(network, ("x",), batches)
