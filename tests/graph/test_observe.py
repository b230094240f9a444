"""Inner tensors as outputs: the values that the model computes anyway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.graph import models
from trtbuild.graph.observe import with_outputs

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
