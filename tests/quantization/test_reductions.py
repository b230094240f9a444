"""Extremes and channel statistics: computed in the graph, equal to what NumPy computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.graph import models
from tests.quantization import networks
from trtbuild.errors import DataError
from trtbuild.quantization.channel_statistics import channel_statistics, from_bytes, to_bytes
from trtbuild.quantization.extremes import extremes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.graph.models import Array
    from trtbuild.graph import Graph

SHARED_FOLDER = settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

MASKED = """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] none) {
    masked = Where(hidden, infinity, x) y = Softmax(masked) none = Where(all, infinity, x)
}"""
MASKED_WEIGHTS = {
    "hidden": np.array([[False, False, False, True]]),
    "all": np.array([[True]]),
    "infinity": np.array(-np.inf, np.float32),
}


def quiet(_: int) -> None: ...


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return networks.network(tmp_path_factory.mktemp("network"))


def test_extremes_leave_out_the_infinities_of_masks(tmp_path: Path) -> None:
    graph = models.write(tmp_path / "m.onnx", MASKED, MASKED_WEIGHTS)
    data = models.normal(10, 4)
    found = extremes(graph, ("x", "masked", "none"), [{"x": data}], tmp_path, quiet)
    assert list(found) == ["x", "masked", "none"]
    assert found["x"] == np.abs(data).max()
    assert found["masked"] == np.abs(data[:, :3]).max()
    assert found["none"] == 0.0


def test_extremes_name_the_tensor_and_the_samples_that_are_not_numbers(tmp_path: Path) -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { h = Relu(x) y = Sqrt(x) }"
    graph = models.write(tmp_path / "m.onnx", text, {})
    data = np.abs(models.normal(20, 4))
    data[17, 2] = -1.0
    seen: list[int] = []
    with pytest.raises(DataError, match=r"samples 16 to 19: 'y' has NaN"):
        extremes(graph, ("h", "y"), [{"x": data}], tmp_path, seen.append)
    assert seen == [8, 16]
    with pytest.raises(DataError, match="empty"):
        extremes(graph, ("h",), [], tmp_path, quiet)


@pytest.mark.parametrize("opset", [13, 17, 18, 20, 21])
@pytest.mark.parametrize("kind", ["float", "float16", "double"])
def test_every_floating_type_and_opset_has_extremes_and_channels(
    kind: str, opset: int, tmp_path: Path
) -> None:
    text = f"g ({kind}[N, 3, 5] x) => ({kind}[N, 3, 5] y) {{ y = Neg(x) }}"
    graph = models.write(tmp_path / "m.onnx", text, {}, opset=opset)
    dtype = {"float": np.float32, "float16": np.float16, "double": np.float64}[kind]
    data = models.normal(9, 3, 5).astype(dtype)
    assert extremes(graph, ("y",), [{"x": data}], tmp_path, quiet)["y"] == np.abs(data).max()
    (found,) = channel_statistics(graph, {"y": 1}, [{"x": data}], tmp_path, quiet).values()
    np.testing.assert_array_equal(found.amax, np.abs(data).max(axis=(0, 2)))
    expected = -data.astype(np.float64).mean(axis=(0, 2))
    np.testing.assert_allclose(found.mean, expected, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3])
def test_channels_may_lie_along_any_axis(axis: int, tmp_path: Path) -> None:
    """12 samples in chunks of 8: the second is filled up with copies that must not count."""
    text = "g (float[N, 3, 4, 5] x) => (float[N, 3, 4, 5] y) { y = Relu(x) }"
    graph = models.write(tmp_path / "m.onnx", text, {})
    data = models.normal(8 if axis == 0 else 12, 3, 4, 5)
    (found,) = channel_statistics(graph, {"y": axis}, [{"x": data}], tmp_path, quiet).values()
    others = tuple(each for each in range(4) if each != axis % 4)
    y = np.maximum(data, 0).astype(np.float64)
    np.testing.assert_array_equal(found.amax, y.max(axis=others))
    np.testing.assert_allclose(found.mean, y.mean(axis=others), rtol=1e-6)


def test_a_tensor_without_samples_along_its_first_axis_counts_once(tmp_path: Path) -> None:
    text = """g (float[N, 8, 4] x) => (float[8, N, 4] t, float[?, 4] f) {
        t = Transpose<perm = [1, 0, 2]>(x) f = Reshape(x, rows)
    }"""
    graph = models.write(tmp_path / "m.onnx", text, {"rows": np.array([-1, 4])})
    data = models.normal(13, 8, 4)
    found = channel_statistics(graph, {"t": -1, "f": 1}, [{"x": data}], tmp_path, quiet)
    for name in ("t", "f"):
        np.testing.assert_allclose(found[name].mean, data.mean(axis=(0, 1)), atol=1e-6)
        np.testing.assert_array_equal(found[name].amax, np.abs(data).max(axis=(0, 1)))


@SHARED_FOLDER
@given(lengths=st.lists(st.integers(1, 15), max_size=9), order=st.permutations(range(21)))
def test_channels_of_a_network_do_not_depend_on_cut_or_order(
    network: Graph, lengths: list[int], order: list[int]
) -> None:
    data = networks.images(21)
    tensors = {"stem_r": 1, "middle": 1, "flat": -1}
    edges = np.minimum(np.cumsum([0, *lengths]), 21)

    def measure(batches: list[Array]) -> list[bytes]:
        feeds = [{"x": batch} for batch in batches if len(batch)]
        found = channel_statistics(network, tensors, feeds, network.path.parent, quiet)
        return [f.amax.tobytes() + f.mean.tobytes() for f in found.values()]

    shuffled = data[np.array(order)]
    assert measure([data]) == measure(np.split(shuffled, edges[1:]))


def test_what_cannot_be_reduced_is_refused(network: Graph, tmp_path: Path) -> None:
    feeds = [{"x": networks.images(2)}]
    for tensors, message in (({"absent": 1}, "no tensors"), ({"middle": 4}, "4 axes, so no")):
        with pytest.raises(ValueError, match=message):
            channel_statistics(network, tensors, feeds, tmp_path, quiet)
    bad = {"x": networks.images(2)}
    bad["x"][1, 0, 0, 0] = np.inf
    with pytest.raises(DataError, match=r"samples 0 to 1: '.*' has NaN or infinite"):
        channel_statistics(network, {"stem_r": 1}, [bad], tmp_path, quiet)


def test_channel_statistics_survive_their_file(network: Graph, tmp_path: Path) -> None:
    tensors = {"stem_r": 1, "flat": -1}
    found = channel_statistics(network, tensors, [{"x": networks.images(3)}], tmp_path, quiet)
    assert to_bytes(dict(reversed(found.items()))) == to_bytes(found)
    read = from_bytes(to_bytes(found))
    assert sorted(read) == sorted(found)
    for name, item in found.items():
        np.testing.assert_array_equal(read[name].amax, item.amax)
        np.testing.assert_array_equal(read[name].mean, item.mean)
    assert from_bytes(to_bytes({})) == {}
