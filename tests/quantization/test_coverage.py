"""What a cache covers: tensors by name and by same values, never by likeness alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.graph import models
from trtbuild.backends import tensorrt_rtx
from trtbuild.graph.optimize import optimize
from trtbuild.quantization.coverage import cover
from trtbuild.quantization.quantize import placement_of
from trtbuild.quantization.trt_cache import TrtCache

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.quantization.coverage import Coverage

MODEL = """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    a = Conv(x, w) b = BatchNormalization(a, s, t, m, v) c = Identity(b)
    d = Conv(c, k) e = Relu(d) f = Identity(e)
    p = GlobalAveragePool(f) q = Flatten(p) y = Gemm(q, g)
}"""


def covered(folder: Path, **scales: float) -> Coverage:
    """Return what a cache of ``scales`` has for the convolutions and the Gemm of the model."""
    norm = {name: 1 + np.abs(models.normal(4, seed=i)) for i, name in enumerate("stmv")}
    weights = {"w": models.normal(4, 3, 3, 3), "k": models.normal(4, 4, 3, 3), **norm}
    source = models.write(folder / "a.onnx", MODEL, {**weights, "g": models.normal(4, 5)})
    graph, _ = optimize(source, folder / "b.onnx")
    needed = placement_of(graph, tensorrt_rtx.SCHEME, ()).observed
    cache = TrtCache(version="8601", algorithm="EntropyCalibration2", scales=scales)
    return cover(cache, source, graph, needed)


def test_the_result_of_a_folded_layer_has_the_scale_of_the_result_not_of_the_layer(
    tmp_path: Path,
) -> None:
    found = covered(tmp_path, x=1.0, a=2.0, b=3.0, q=4.0)
    assert {each.tensor: each.scale for each in found.matches} == {"x": 1.0, "b": 3.0, "q": 4.0}
    assert found.missing == found.unknown == ()
    assert found.unneeded == 1


def test_a_tensor_takes_the_scale_of_one_that_holds_the_same_values(tmp_path: Path) -> None:
    found = covered(tmp_path, x=1.0, c=3.0, p=4.0)
    entries = {each.tensor: each.entry for each in found.matches}
    assert entries == {"x": "x", "b": "c", "q": "p"}
    assert found.missing == ()


def test_a_tensor_is_not_given_the_scale_of_other_values(tmp_path: Path) -> None:
    found = covered(tmp_path, **{"x": 1.0, "a": 2.0, "f": 5.0, "(Unnamed Layer* 3) [S]": 1.0})
    assert [each.name for each in found.missing] == ["b", "q"]
    assert (found.unneeded, found.internal, found.unknown) == (2, 1, ())


def test_an_entry_without_a_tensor_is_told_with_the_names_that_are_close(
    tmp_path: Path,
) -> None:
    text = """g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
        stem_output = Relu(x) y = Conv(stem_output, w)
    }"""
    source = models.write(tmp_path / "a.onnx", text, {"w": models.normal(4, 3, 3, 3)})
    graph, _ = optimize(source, tmp_path / "b.onnx")
    cache = TrtCache(
        version="8601", algorithm="EntropyCalibration2", scales={"stem_output_0": 1.0}
    )
    found = cover(cache, source, graph, ("stem_output",))
    assert [(each.name, each.close) for each in found.unknown] == [
        ("stem_output_0", ("stem_output",))
    ]
    assert [(each.name, each.close) for each in found.missing] == [
        ("stem_output", ("stem_output_0",))
    ]


def test_an_entry_of_its_own_goes_before_one_of_the_same_values(tmp_path: Path) -> None:
    found = covered(tmp_path, x=1.0, b=3.0, p=5.0, q=4.0)
    assert [each.scale for each in found.matches if each.tensor == "q"] == [4.0]
