"""Inner tensors as outputs: the values that the model computes anyway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from tests.graph import models
from trtbuild.backends.ort_observe import open_observed, write_optimized
from trtbuild.graph.model import read_graph
from trtbuild.graph.observe import add_outputs, expose, with_outputs

if TYPE_CHECKING:
    from pathlib import Path


def test_inner_tensors_become_the_only_outputs(tmp_path: Path) -> None:
    text = "g (float[4] x) => (float[4] y) { a = Relu(x) b = Neg(a) y = Exp(b) }"
    graph = models.write(tmp_path / "m.onnx", text, {})
    observed = with_outputs(graph, ("b", "a"), tmp_path / "observed.onnx")
    assert [spec.name for spec in observed.outputs] == ["b", "a"]
    x = np.array([-1, 2, -3, 4], np.float32)
    got = models.run(observed.path, {"x": x})
    np.testing.assert_array_equal(got["a"], np.maximum(x, 0))
    np.testing.assert_array_equal(got["b"], -np.maximum(x, 0))
    with pytest.raises(ValueError, match="no tensors are called nothing"):
        with_outputs(graph, ("a", "nothing"), tmp_path / "never.onnx")
    assert not (tmp_path / "never.onnx").exists()


IMAGES = """g (float[N, 3, 9, 9] x) => (float[N, 20, 9, 9] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1) b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b, w2) d = Add(c, b) e = Relu(d)
    y = Conv<pads = [1, 1, 1, 1]>(e, w3)
}"""
IMAGES_WEIGHTS = {
    "w1": models.normal(32, 3, 3, 3) / 5,
    "b1": models.normal(32, seed=1),
    "w2": models.normal(32, 32, 3, 3, seed=2) / 17,
    "w3": models.normal(20, 32, 3, 3, seed=3) / 17,
}


def test_blocks_of_channels_are_handed_out_as_they_are(tmp_path: Path) -> None:
    """20 channels fill no blocks: the zeros behind them must not be handed out."""
    graph = models.write(tmp_path / "m.onnx", IMAGES, IMAGES_WEIGHTS)
    x = models.normal(2, 3, 9, 9, seed=4)
    wanted = ("b", "e", "y")
    named = with_outputs(graph, wanted, tmp_path / "named.onnx")
    expected = open_observed(named.path, optimized=False).run({"x": x})
    path = add_outputs(graph, wanted, tmp_path / "added.onnx")
    assert path.stat().st_size < graph.path.stat().st_size + 100
    write_optimized(path, tmp_path / "optimized.onnx")
    names = expose(tmp_path / "optimized.onnx", wanted, tmp_path / "exposed.onnx")
    got = open_observed(tmp_path / "exposed.onnx", optimized=True).run({"x": x})
    blocked = [name for name in wanted if names[name] != name]
    if "Reorder" in " ".join(models.operators(tmp_path / "optimized.onnx")):
        assert blocked == ["b", "e"]
    for name in wanted:
        assert got[names[name]].size == expected[name].size
        np.testing.assert_array_equal(
            np.sort(got[names[name]], axis=None), np.sort(expected[name], axis=None)
        )


def test_a_part_of_the_tensors_has_the_bits_of_all(tmp_path: Path) -> None:
    graph = models.write(tmp_path / "m.onnx", IMAGES, IMAGES_WEIGHTS)
    x = models.normal(2, 3, 9, 9, seed=4)
    path = add_outputs(graph, ("a", "d", "e", "y"), tmp_path / "added.onnx")
    write_optimized(path, tmp_path / "optimized.onnx")
    found: dict[tuple[str, ...], dict[str, bytes]] = {}
    for group in (("a", "d", "e", "y"), ("a",), ("d", "e"), ("y",)):
        names = expose(tmp_path / "optimized.onnx", group, tmp_path / "exposed.onnx")
        outputs = open_observed(tmp_path / "exposed.onnx", optimized=True).run({"x": x})
        found[group] = {name: outputs[names[name]].tobytes() for name in group}
    (whole, *parts) = found.values()
    assert {name: each for part in parts for name, each in part.items()} == whole
    first = models.operators(tmp_path / "exposed.onnx")
    expose(tmp_path / "optimized.onnx", ("a",), tmp_path / "exposed.onnx")
    assert len(models.operators(tmp_path / "exposed.onnx")) < len(first)


def test_what_subgraphs_read_is_kept(tmp_path: Path) -> None:
    text = """g (float[N, 4] x, bool flag) => (float[N, 4] y) {
        h = Relu(x) n = Neg(x) o = Exp(x)
        y = If (flag) <
            then_branch = yes () => (float[N, 4] a) { a = Identity(h) },
            else_branch = no () => (float[N, 4] b) { b = Identity(n) }
        >
    }"""
    graph = models.write(tmp_path / "m.onnx", text, {})
    write_optimized(graph.path, tmp_path / "optimized.onnx")
    expose(tmp_path / "optimized.onnx", ("y",), tmp_path / "exposed.onnx")
    x = models.normal(3, 4)
    session = open_observed(tmp_path / "exposed.onnx", optimized=True)
    for flag, expected in ((True, np.maximum(x, 0)), (False, -x)):
        np.testing.assert_array_equal(
            session.run({"x": x, "flag": np.array(flag)})["y"], expected
        )


def test_weights_in_another_file_are_found(tmp_path: Path) -> None:
    proto = models.proto(IMAGES, IMAGES_WEIGHTS)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    (tmp_path / "work").mkdir()
    path = add_outputs(
        read_graph(tmp_path / "m.onnx"), ("b",), tmp_path / "work" / "added.onnx"
    )
    specs = write_optimized(path, tmp_path / "work" / "optimized.onnx")
    assert [spec.name for spec in specs] == ["b"]
