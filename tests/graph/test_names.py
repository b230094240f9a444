"""Names of tensors: what keeps its name through the rewrites keeps its values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.graph import light, models
from trtbuild.graph.model import load_model
from trtbuild.graph.observe import with_outputs
from trtbuild.graph.optimize import optimize

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.graph import Graph

FOLDED = """g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
    c = Conv(x, w) d = Mul(c, k) e = Add(d, b) n = BatchNormalization(e, s, t, m, v)
    i = Identity(n) y = Relu(i)
}"""


def folded(path: Path) -> Graph:
    norm = {name: 1 + np.abs(models.normal(4, seed=i)) for i, name in enumerate("stmv")}
    weights = {"w": models.normal(4, 3, 3, 3), "k": models.normal(4, 1, 1, seed=9)}
    return models.write(path, FOLDED, {**weights, "b": models.normal(4, 1, 1), **norm})


def produced(graph: Graph) -> list[str]:
    nodes = load_model(graph.path).graph
    return [value.name or "" for node in nodes for value in node.outputs]


@pytest.mark.parametrize("name", ["folded", "shufflenet"])
def test_a_tensor_that_keeps_its_name_keeps_its_values(name: str, tmp_path: Path) -> None:
    path = tmp_path / "source.onnx"
    source = folded(path) if name == "folded" else light.write(name, path)
    result, _ = optimize(source, tmp_path / "optimized.onnx")
    before = set(produced(source))
    kept = tuple(tensor for tensor in produced(result) if tensor in before)
    assert len(kept) == len(produced(result)) < len(before)

    shape = [size if isinstance(size, int) else 2 for size in source.inputs[0].shape]
    feeds = {source.inputs[0].name: models.normal(*shape)}
    expected = models.run(with_outputs(source, kept, tmp_path / "a.onnx").path, feeds)
    got = models.run(with_outputs(result, kept, tmp_path / "b.onnx").path, feeds)
    for tensor in kept:
        scale = float(np.abs(expected[tensor]).max())
        np.testing.assert_allclose(got[tensor], expected[tensor], atol=1e-4 * scale)
