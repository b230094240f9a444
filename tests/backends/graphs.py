"""Small real graphs: convolutional, quantized for each backend, or broken in one way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from trtbuild.graph.model import read_graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trtbuild.backends.scheme import Scheme
    from trtbuild.graph import Graph

Array = npt.NDArray[Any]
MakeData = Callable[[Path, Path], str]

CHANNELS = 16
SIZE = 16
SCALE = 0.05
WEIGHT_SCALE = 0.00193


class Drawing:
    """Collects nodes and constants of a graph; each method returns the name of a tensor."""

    def __init__(self, scheme: Scheme | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._scheme = scheme
        self._random = np.random.default_rng(0)

    def constant(self, name: str, values: npt.ArrayLike) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        name: str,
        **attributes: int | Sequence[int],
    ) -> str:
        made = helper.make_node(operator, inputs, [f"{name}_out"], name=name)
        made.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(made)
        return f"{name}_out"

    def activation(self, tensor: str) -> str:
        """Return ``tensor`` behind a Q/DQ pair in the scheme's type, itself without a scheme.

        What comes out of a ReLU is quantized from zero up, which makes the ReLU superfluous.
        """
        if self._scheme is None:
            return tensor
        zero: np.uint8 | np.int8 = np.int8(0)
        if self._scheme.activation == "uint8":
            zero = np.uint8(0 if "relu" in tensor else 128)
        grid = [
            self.constant("scale", np.float32(SCALE)),
            self.constant(f"zero_{zero}", zero),
        ]
        codes = self.node("QuantizeLinear", [tensor, *grid], f"q_{tensor}")
        return self.node("DequantizeLinear", [codes, *grid], f"dq_{tensor}")

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        """Return a weight, dequantized per output channel (axis 0) where there is a scheme."""
        limit = 127 if self._scheme is None else (1 << (self._scheme.weight_bits - 1)) - 1
        codes = self._random.integers(-limit, limit + 1, shape).astype(np.int8)
        if self._scheme is None:
            return self.constant(name, codes.astype(np.float32) * np.float32(WEIGHT_SCALE))
        scales = np.full(shape[0], WEIGHT_SCALE, np.float32)
        inputs = [
            self.constant(f"{name}_codes", codes),
            self.constant(f"{name}_scale", scales),
            self.constant(f"{name}_zero", np.zeros(shape[0], np.int8)),
        ]
        return self.node("DequantizeLinear", inputs, f"dq_{name}", axis=0)

    def bias(self, name: str, size: int) -> str:
        if self._scheme is None or self._scheme.bias == "float":
            return self.constant(name, np.full(size, 0.1, np.float32))
        inputs = [
            self.constant(f"{name}_codes", np.full(size, 1000, np.int32)),
            self.constant(f"{name}_scale", np.full(size, SCALE * WEIGHT_SCALE, np.float32)),
            self.constant(f"{name}_zero", np.zeros(size, np.int32)),
        ]
        return self.node("DequantizeLinear", inputs, f"dq_{name}", axis=0)

    def requantized(self, tensor: str) -> str:
        """Return ``tensor`` behind a Q/DQ pair where the scheme wants one behind operators."""
        if self._scheme is None or not self._scheme.requantize_outputs:
            return tensor
        return self.activation(tensor)

    def conv(self, tensor: str, name: str) -> str:
        weight = self.weight(f"{name}_w", (CHANNELS, CHANNELS, 3, 3))
        bias = self.bias(f"{name}_b", CHANNELS)
        return self.node("Conv", [tensor, weight, bias], name, pads=[1, 1, 1, 1])

    def save(self, path: Path, output: str, shape: Sequence[int | str]) -> Graph:
        """Write the graph from ``x`` to ``output`` and return it."""
        x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [None] * len(shape))
        graph = helper.make_graph(self.nodes, "graph", [x], [y], list(self.constants.values()))
        opsets = [helper.make_opsetid("", 21)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        return read_graph(path)


IMAGE = ("batch", CHANNELS, SIZE, SIZE)


def residual(path: Path, scheme: Scheme | None) -> Graph:
    """Three convolutions with ReLUs and a residual Add, quantized where there is a scheme."""
    draw = Drawing(scheme)
    x = draw.activation("x")
    stem = draw.requantized(draw.node("Relu", [draw.conv(x, "stem")], "stem_relu"))
    inner = draw.requantized(draw.conv(_pair(draw, stem), "inner"))
    added = draw.node("Relu", [draw.node("Add", [stem, inner], "add")], "add_relu")
    head = draw.requantized(draw.conv(draw.activation(added), "head"))
    return draw.save(path, head, IMAGE)


def tagger(path: Path) -> Graph:
    """A convolution over time, a GRU of both directions and a classifier, of any length."""
    draw = Drawing()
    kernel = draw.weight("stem_w", (CHANNELS, CHANNELS, 3))
    stem = draw.node("Conv", ["x", kernel], "stem", pads=[1, 1])
    steps = draw.node("Transpose", [stem], "steps", perm=[2, 0, 1])
    weights = [draw.weight(f"gru_{which}", (2, 3 * CHANNELS, CHANNELS)) for which in "wr"]
    gru = draw.node("GRU", [steps, *weights], "gru", hidden_size=CHANNELS)
    draw.nodes[-1].attribute.append(helper.make_attribute("direction", "bidirectional"))
    turned = draw.node("Transpose", [gru], "turned", perm=[2, 0, 1, 3])
    shape = draw.constant("joined_shape", np.array([0, 0, 2 * CHANNELS], np.int64))
    joined = draw.node("Reshape", [turned, shape], "joined")
    head = draw.node("MatMul", [joined, draw.weight("head_w", (2 * CHANNELS, 8))], "head")
    return draw.save(path, head, ("batch", CHANNELS, "length"))


def _pair(draw: Drawing, tensor: str) -> str:
    """Return ``tensor`` quantized, unless it comes out of a pair already."""
    return tensor if tensor.startswith("dq_") else draw.activation(tensor)


def chain(path: Path, names: Sequence[str]) -> Graph:
    """Convolutions and activations in turn, one node for each of ``names``."""
    draw = Drawing()
    tensor = "x"
    for index, name in enumerate(names):
        if index % 2:
            tensor = draw.node("Relu", [tensor], f"relu_{index}")
        else:
            tensor = draw.conv(tensor, f"conv_{index}")
        draw.nodes[-1].name = name
    return draw.save(path, tensor, IMAGE)


def division(path: Path, divisor: int) -> Graph:
    """Add a quotient of two integer constants to ``x``."""
    draw = Drawing()
    operands = [
        draw.constant("dividend", np.array([8], np.int64)),
        draw.constant("divisor", np.array([divisor], np.int64)),
    ]
    quotient = draw.node("Div", operands, "quotient")
    number = draw.node("Cast", [quotient], "number", to=onnx.TensorProto.FLOAT)
    return draw.save(path, draw.node("Add", ["x", number], "sum"), ("batch", 8))


def images(batch: int) -> Array:
    """Return ``batch`` images, the same at every call."""
    shape = (batch, CHANNELS, SIZE, SIZE)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def move_outside(path: Path, places: dict[str, tuple[str, int]]) -> None:
    """Rewrite a model so that constants, by name, lie in files of so many bytes."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name in places:
            location, length = places[tensor.name]
            tensor.ClearField("raw_data")
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location), ("length", str(length))):
                tensor.external_data.add(key=key, value=value)
    onnx.save(model, path)
