"""Models that differ only in weights have one structure; anything else is another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.graph import models as graphs
from tests.pipeline import models
from trtbuild.graph.structure import load_without_weights, structure_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def edited(path: Path, change: Callable[[onnx.GraphProto], None]) -> Path:
    model = onnx.load(path)
    change(model.graph)
    out = path.with_name("edited.onnx")
    onnx.save(model, out)
    return out


def test_other_weights_leave_the_structure_and_are_named(tmp_path: Path) -> None:
    one = structure_of(models.classifier(tmp_path / "one.onnx", seed=0))
    two = structure_of(models.classifier(tmp_path / "two.onnx", seed=1))
    assert one.sha256 == two.sha256
    assert one.changed(two) == ("b0", "b1", "b2", "w0", "w1", "w2")
    assert one.changed(one) == ()


def test_one_changed_weight_is_named_wherever_its_data_lies(tmp_path: Path) -> None:
    path = models.classifier(tmp_path / "one.onnx")

    def change(graph: onnx.GraphProto) -> None:
        bias = next(tensor for tensor in graph.initializer if tensor.name == "b1")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, "b1"))

    one, other = structure_of(path), structure_of(edited(path, change))
    assert one.changed(other) == ("b1",)
    outside = tmp_path / "outside.onnx"
    onnx.save(
        onnx.load(path), outside, save_as_external_data=True, location="d", size_threshold=0
    )
    assert structure_of(outside) == one


def another_operator(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "Relu").op_type = "Sigmoid"


def another_attribute(graph: onnx.GraphProto) -> None:
    graph.node[0].attribute[0].ints[0] = 0


def another_shape(graph: onnx.GraphProto) -> None:
    bias = next(tensor for tensor in graph.initializer if tensor.name == "b0")
    bias.CopyFrom(numpy_helper.from_array(np.zeros((1, 16), np.float32), "b0"))


def another_type(graph: onnx.GraphProto) -> None:
    bias = next(tensor for tensor in graph.initializer if tensor.name == "b0")
    bias.CopyFrom(numpy_helper.from_array(np.zeros(16, np.float16), "b0"))


def another_name(graph: onnx.GraphProto) -> None:
    graph.node[0].name = "other"


@pytest.mark.parametrize(
    "change",
    [another_operator, another_attribute, another_shape, another_type, another_name],
)
def test_everything_else_is_structure(
    change: Callable[[onnx.GraphProto], None], tmp_path: Path
) -> None:
    path = models.classifier(tmp_path / "one.onnx")
    assert structure_of(edited(path, change)).sha256 != structure_of(path).sha256


def test_constants_that_shapes_are_made_of_are_structure(tmp_path: Path) -> None:
    found = []
    for size in (2, 4):
        nodes = [helper.make_node("Reshape", ["x", "to"], ["y"], name="reshape")]
        path = models.save(
            tmp_path / "reshape.onnx",
            nodes,
            {"to": np.asarray([size, 8 // size], np.int64)},
            [models.floats("x", 8)],
            [models.floats("y", "a", "b")],
        )
        found.append(structure_of(path))
    assert found[0].sha256 != found[1].sha256
    assert found[0].weights == found[1].weights == {}


def test_constants_that_nobody_uses_do_not_count(tmp_path: Path) -> None:
    path = models.classifier(tmp_path / "one.onnx")

    def change(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "left"))

    assert structure_of(edited(path, change)) == structure_of(path)


def test_weights_are_left_out_of_what_inference_reads_and_shapes_are_not(
    tmp_path: Path,
) -> None:
    text = (
        "g (float[2, 64] x) => (float y) { a = MatMul(x, w) b = Reshape(a, s) y = Mul(b, k) }"
    )
    weights = {
        "w": graphs.normal(64, 64),
        "s": np.array([1] * 598 + [64, 2], np.int64),
        "k": graphs.normal(64, 2),
    }
    graph = graphs.write(tmp_path / "m.onnx", text, weights)
    proto = load_without_weights(graph.path)
    kept = {tensor.name: len(tensor.raw_data) for tensor in proto.graph.initializer}
    assert kept == {"w": 0, "s": 600 * 8, "k": 64 * 2 * 4}
    inferred = onnx.shape_inference.infer_shapes(proto)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in inferred.graph.value_info
    }
    assert shapes["a"] == [2, 64]
    assert shapes["b"] == [1] * 598 + [64, 2]
