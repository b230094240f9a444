"""ResNet-50 with weights as training leaves them, and crops of photographs for it.

The structure is the light model that the onnx package ships. Its weights are drawn: He's
initialization with a spread over the channels, random affine batch normalizations whose
statistics are those of real inputs. So every layer works in the range that it would work in,
but the outputs mean nothing: this model tells speed, memory and tensor errors, no accuracy.

This file is also the provider of the model's data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnx.version_converter import convert_version
from sklearn.datasets import load_sample_images

from tests.graph import light

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

SIZE = 224
BATCH = 8
CALIBRATION = 64
EVALUATION = 64
_CLASSES = 1000
_OPSET = 17
_EPSILON = 1e-5


def write(path: Path) -> None:
    """Write the model ``images`` [batch, 3, 224, 224] to logits [batch, 1000]; opset 17."""
    light.write("resnet50", path)
    old = onnx.load(path)
    constants = {tensor.name for tensor in old.graph.initializer}
    (images,) = (value for value in old.graph.input if value.name not in constants)
    del old.graph.input[:]
    old.graph.input.append(images)
    old.ir_version = 8
    model = convert_version(old, _OPSET)
    _modernize(model.graph)
    tensors = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    _draw(model.graph, tensors)
    _store(model.graph, tensors)
    _estimate(model, tensors)
    _store(model.graph, tensors)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def calibration_batches() -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Yield 64 crops in batches of 8."""
    yield from _batches(CALIBRATION, seed=1)


def evaluation_batches() -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Yield 64 other crops in batches of 8."""
    yield from _batches(EVALUATION, seed=2)


def _batches(samples: int, seed: int) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Yield random crops of two photographs, some mirrored, normalized as ImageNet's are."""
    random = np.random.default_rng(seed)
    photographs = load_sample_images().images
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    deviation = np.array([0.229, 0.224, 0.225], np.float32)
    for _ in range(samples // BATCH):
        crops = []
        for _ in range(BATCH):
            photograph = photographs[random.integers(len(photographs))]
            top, left = (random.integers(side - SIZE + 1) for side in photograph.shape[:2])
            crop = photograph[top : top + SIZE, left : left + SIZE]
            crops.append(crop[:, :: random.choice((-1, 1))])
        pixels = (np.stack(crops).astype(np.float32) / 255 - mean) / deviation
        yield {"images": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))}


def _modernize(graph: onnx.GraphProto) -> None:
    """Call the input ``images``, let the batch size be any, and renew two old operators."""
    old = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["images" if tensor == old else tensor for tensor in node.input]
        if node.op_type == "Sum":
            node.op_type = "Add"  # as exporters of today write it, and quantizers expect it
        if node.op_type == "Reshape":
            node.op_type = "Flatten"
            del node.input[1:]
            del node.attribute[:]
    graph.input[0].name = "images"
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.value_info[:]
    (logits,) = graph.output
    logits.CopyFrom(
        helper.make_tensor_value_info(logits.name, onnx.TensorProto.FLOAT, ["batch", _CLASSES])
    )


def _draw(graph: onnx.GraphProto, tensors: dict[str, npt.NDArray[np.float32]]) -> None:
    random = np.random.default_rng(0)
    for node in graph.node:
        if node.op_type == "Conv":
            weight = tensors[node.input[1]]
            spread = np.exp(random.standard_normal(len(weight)) / 2).reshape(-1, 1, 1, 1)
            tensors[node.input[1]] = (weight * spread).astype(np.float32)
        if node.op_type == "BatchNormalization":
            size = tensors[node.input[1]].shape
            tensors[node.input[1]] = random.uniform(0.5, 1.5, size).astype(np.float32)
            tensors[node.input[2]] = (random.standard_normal(size) / 2).astype(np.float32)


def _estimate(model: onnx.ModelProto, tensors: dict[str, npt.NDArray[np.float32]]) -> None:
    """Set the statistics of all batch normalizations to those of one batch of crops."""
    training = onnx.ModelProto()
    training.CopyFrom(model)
    graph = training.graph
    nodes = list(graph.node)
    del graph.node[:]
    places: dict[str, str] = {}
    for node in nodes:
        if node.op_type != "BatchNormalization":
            graph.node.append(node)
            continue
        x, scale, shift, mean, variance = node.input
        y = node.output[0]
        axes = [0, 2, 3]
        places.update({mean: f"{y}_mean", variance: f"{y}_variance"})
        graph.node.extend(
            [
                helper.make_node("ReduceMean", [x], [f"{y}_mean"], axes=axes, keepdims=0),
                helper.make_node("ReduceMean", [x], [f"{y}_center"], axes=axes),
                helper.make_node("Sub", [x, f"{y}_center"], [f"{y}_centered"]),
                helper.make_node("Mul", [f"{y}_centered"] * 2, [f"{y}_squared"]),
                helper.make_node(
                    "ReduceMean", [f"{y}_squared"], [f"{y}_variance"], axes=axes, keepdims=0
                ),
                helper.make_node(
                    "BatchNormalization",
                    [x, scale, shift, f"{y}_mean", f"{y}_variance"],
                    [y],
                    epsilon=_EPSILON,
                ),
            ]
        )
    graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in places.values()
    )
    _store(graph, tensors)
    session = ort.InferenceSession(
        training.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(list(places.values()), next(_batches(BATCH, seed=0)))
    tensors.update(zip(places, found, strict=True))


def _store(graph: onnx.GraphProto, tensors: dict[str, npt.NDArray[np.float32]]) -> None:
    used = {tensor for node in graph.node for tensor in node.input}
    del graph.initializer[:]
    graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in tensors.items() if name in used
    )
