"""Sessions that compute with NumPy, for what needs no model, and a real one of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from trtbuild.engine import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

Array = npt.NDArray[Any]
Function = Callable[[Mapping[str, Array]], dict[str, Array]]


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


@dataclass(frozen=True)
class FunctionSession:
    """A session that computes ``function``, which sees exactly the inputs."""

    function: Function
    inputs: tuple[TensorSpec, ...] = (spec("x", "batch", 4),)
    outputs: tuple[TensorSpec, ...] = (spec("y", "batch", 4),)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert set(inputs) == {each.name for each in self.inputs}
        return self.function(inputs)


def elementwise(function: Callable[[Array], Array]) -> FunctionSession:
    """Return a session whose output ``y`` is ``function`` of its input ``x``."""
    return FunctionSession(lambda inputs: {"y": function(inputs["x"])})


def identity() -> FunctionSession:
    return elementwise(lambda x: x)


class OnnxSession:
    """A graph in ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        self._session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs = tuple(spec(i.name, *i.shape) for i in self._session.get_inputs())
        self.outputs = tuple(spec(o.name, *o.shape) for o in self._session.get_outputs())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        names = [each.name for each in self.outputs]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))


WEIGHT = np.random.default_rng(7).normal(size=(4, 4)).astype(np.float32)


def linear(path: Path, *, weight: Array = WEIGHT, rows: str = "-1") -> OnnxSession:
    """Return ``y = reshape(x, [rows, 4]) @ weight`` as a graph; ``rows`` may be baked in."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[batch, 4] x) => (float[batch, 4] y) {{
            shape = Constant<value_ints = [{rows}, 4]>()
            flat = Reshape(x, shape)
            y = MatMul(flat, w)
        }}"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, path)
    return OnnxSession(path)
