"""Sort activations into the few groups that want different calibration methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.graph.model import load_model

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir

    from trtbuild.graph import Graph

_SAME_VALUES = (
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "MaxPool",
    "Slice",
    "Identity",
    "Dropout",
)
"""Operators whose output holds values of their first input."""

_GROUPS = {
    "Relu": "rectified",
    "LeakyRelu": "rectified",
    "PRelu": "rectified",
    "Clip": "rectified",
    "HardSwish": "rectified",
    "Elu": "rectified",
    "Gelu": "rectified",
    "Softplus": "rectified",
    "Swish": "rectified",
    "Mish": "rectified",
    "Sigmoid": "bounded",
    "HardSigmoid": "bounded",
    "Softmax": "bounded",
    "Tanh": "bounded",
    "LayerNormalization": "normalized",
    "RMSNormalization": "normalized",
    "BatchNormalization": "normalized",
    "InstanceNormalization": "normalized",
    "GroupNormalization": "normalized",
    "Conv": "products",
    "ConvTranspose": "products",
    "Gemm": "products",
    "MatMul": "products",
    "Concat": "joined",
}


def groups(graph: Graph, tensors: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return ``tensors`` by what makes their values, groups in the order of the graph.

    What makes them is found through operators that only move values, and through additions and
    multiplications by constants: a bias, a smoothing factor.
    """
    model = load_model(graph.path)
    values = {value.name: value for value in model.graph.inputs}
    values.update({v.name: v for node in model.graph for v in node.outputs})
    found: dict[str, list[str]] = {}
    for tensor in tensors:
        found.setdefault(_group(values[tensor]), []).append(tensor)
    return {name: tuple(members) for name, members in found.items()}


def _group(value: ir.Value) -> str:
    node = value.producer()
    if node is None:
        return "inputs"
    data = [v for v in node.inputs if v is not None and v.const_value is None]
    if node.op_type in _SAME_VALUES:
        first = node.inputs[0]
        return _group(first) if first is not None else "others"
    if node.op_type in {"Add", "Sub", "Mul", "Div"}:
        if len(data) == 1:
            return _group(data[0])
        if node.op_type == "Div":
            return "normalized"  # by a deviation or a norm: what a written out norm does
        return "residual" if node.op_type in {"Add", "Sub"} else "gated"
    return _GROUPS.get(node.op_type, "others")
