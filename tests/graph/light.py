"""The light models that the onnx package ships, with weights as a trained network has them.

Their weights are ConstantOfShape nodes. Here each becomes a constant, drawn for the node that
reads it: He initialization for convolutions and products, statistics around 0 and 1 for batch
normalizations. Equal at every call. The softmax at the end goes, since it saturates.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtbuild.graph.model import read_graph

if TYPE_CHECKING:
    from tests.graph.models import Array
    from trtbuild.graph import Graph

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = tuple(sorted(p.stem.removeprefix("light_") for p in FOLDER.glob("*.onnx")))


def write(name: str, path: Path) -> Graph:
    """Write the light model ``name`` with weights, as old as it came: opset 9, IR version 3."""
    model = onnx.load(FOLDER / f"light_{name}.onnx")
    graph = model.graph
    shapes = {t.name: numpy_helper.to_array(t).tolist() for t in graph.initializer}
    readers = _readers(graph)
    random = np.random.default_rng(0)
    drawn = [
        numpy_helper.from_array(
            _draw(*readers[n.output[0]], shapes[n.input[0]], random), n.output[0]
        )
        for n in graph.node
        if n.op_type == "ConstantOfShape"
    ]
    nodes = [n for n in graph.node if n.op_type not in ("ConstantOfShape", "Softmax")]
    used = {tensor for node in nodes for tensor in node.input}
    tensors = [t for t in (*graph.initializer, *drawn) if t.name in used]
    image = next(v for v in graph.input if v.name.endswith("data_0"))
    inputs = [
        image,
        *(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors),
    ]
    logits = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, graph.name, inputs, [logits], tensors)
    opsets = [helper.make_opsetid("", 9)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=3), path)
    return read_graph(path)


def _readers(graph: onnx.GraphProto) -> dict[str, tuple[str, int]]:
    """Return operator and place of the node that reads a tensor, Unsqueeze looked through."""
    found: dict[str, tuple[str, int]] = {}
    for node in reversed(graph.node):
        for index, tensor in enumerate(node.input):
            through = found.get(node.output[0]) if node.op_type == "Unsqueeze" else None
            found[tensor] = through or (node.op_type, index)
    return found


def _draw(operator: str, index: int, shape: list[int], random: np.random.Generator) -> Array:
    noise = random.standard_normal(shape, dtype=np.float32)
    if operator in ("Conv", "Gemm") and index == 1:
        return noise * np.float32(math.sqrt(2 / math.prod(shape[1:])))
    if (operator, index) == ("BatchNormalization", 4):
        return 1 + np.abs(noise) / 4
    around_one = (operator, index) == ("BatchNormalization", 1) or operator == "Mul"
    return noise / 10 + np.float32(around_one)
