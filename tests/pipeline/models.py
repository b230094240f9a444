"""Small real models and data for whole runs, and the recipes that build them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from trtbuild.recipe import Build, Profile, Quantization, Recipe, Source

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.recipe import Gates
    from trtbuild.report.document import Report

Array = npt.NDArray[Any]

CHANNELS = 16
IMAGE = (3, 16, 16)
CLASSES = 10
GPU = "tensorrt-rtx:sm_89"


def weights(seed: int) -> dict[str, Array]:
    """Return the constants of :func:`classifier`, of a scale that keeps activations near 1."""
    random = np.random.default_rng(seed)
    shapes = {
        "w0": (CHANNELS, 3, 3, 3),
        "b0": (CHANNELS,),
        "w1": (CHANNELS, CHANNELS, 3, 3),
        "b1": (CHANNELS,),
        "w2": (CLASSES, CHANNELS),
        "b2": (CLASSES,),
    }
    return {
        name: (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }


def classifier(path: Path, *, seed: int = 0, batch: int | str = "batch") -> Path:
    """Write a residual network of two convolutions and a Gemm, ``x`` to ``y``."""
    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="stem", pads=pads),
        helper.make_node("Relu", ["c0"], ["r0"], name="stem_relu"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], name="inner", pads=pads),
        helper.make_node("Add", ["c1", "r0"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["r1"], name="add_relu"),
        helper.make_node("GlobalAveragePool", ["r1"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w2", "b2"], ["y"], name="head", transB=1),
    ]
    inputs, outputs = [floats("x", batch, *IMAGE)], [floats("y", batch, CLASSES)]
    return save(path, nodes, weights(seed), inputs, outputs)


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def integers(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.INT64, shape)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> Path:
    """Write a graph to ``path`` and return it."""
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def images(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((count, *IMAGE)).astype(np.float32)


def data(path: Path, *, seed: int = 1, count: int = 40) -> Path:
    np.savez(path, x=images(count, seed))
    return path


def recipe(folder: Path, target: str = GPU) -> Recipe:
    """Return the recipe of an INT8 classifier in ``folder``, its model and data written."""
    if not (folder / "model.onnx").exists():
        classifier(folder / "model.onnx")
    if not (folder / "data.npz").exists():
        data(folder / "data.npz")
    return Recipe(
        name="classifier",
        folder=folder,
        source=Source(onnx="model.onnx"),
        quantization=Quantization(precision="int8", provider="data.npz", method="minmax"),
        build=Build(targets=(target,)),
    )


def with_quantization(given: Recipe, **changes: str | tuple[str, ...] | None) -> Recipe:
    table = msgspec.structs.replace(given.quantization, **changes)
    return msgspec.structs.replace(given, quantization=table)


METRIC = """
import numpy as np

def calibration_batches():
    yield {"x": np.load("data.npz")["x"][:32]}

def evaluation_batches():
    yield {"x": np.load("data.npz")["x"][32:], "wanted": np.load("wanted.npy")}

METRIC_NAME = "closeness"

def metric(outputs, batch):
    return -np.abs(outputs["y"] - batch["wanted"]).mean(axis=1)
"""


def with_metric(given: Recipe) -> Recipe:
    """Return the recipe with a provider whose metric is best for the unquantized model."""
    folder = given.folder
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    x = np.load(folder / "data.npz")["x"]
    np.save(folder / "wanted.npy", session.run(["y"], {"x": x[32:]})[0])
    code = METRIC.replace('load("', f'load("{folder}/')
    (folder / "provider.py").write_text(code)
    return with_quantization(given, provider="provider.py")


def with_profile(given: Recipe, low: int, mid: int, high: int) -> Recipe:
    shapes = [(size, *IMAGE) for size in (low, mid, high)]
    profile = Profile(min=shapes[0], opt=shapes[1], max=shapes[2])
    build = msgspec.structs.replace(given.build, profiles={"x": profile})
    return msgspec.structs.replace(given, build=build)


def with_targets(given: Recipe, *targets: str) -> Recipe:
    build = msgspec.structs.replace(given.build, targets=targets)
    return msgspec.structs.replace(given, build=build)


def with_gates(given: Recipe, gates: Gates) -> Recipe:
    return msgspec.structs.replace(given, gates=gates)


def computed(report: Report) -> list[str]:
    """Return the first words of the stages that ran, in their order."""
    return [stage.name.split()[0] for stage in report.stages if not stage.cached]
