"""The type that a graph gives the operands of each product: what an engine is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto

from trtbuild.errors import BuildError
from trtbuild.graph.structure import load_without_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtbuild.graph import Graph

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SHAPES_ONLY = frozenset(
    {"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)

_WORDS: Mapping[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}
"""Types that products are computed in; packed weights (INT4, FP4) are unpacked before."""


def operand_precisions(graph: Graph) -> dict[str, str]:
    """Return the precision of each product by node name: ``int8``, ``fp8``, ``fp16`` ...

    A product is in 8 bits where both of its operands come from a DequantizeLinear of 8 bits;
    otherwise it is in the type of its data. Nodes whose types inference cannot tell are left
    out, as are those of subgraphs.

    Raises:
        BuildError: inference fails altogether.
    """
    proto = load_without_weights(graph.path)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise BuildError(f"{graph.path}: types do not fit the graph: {error}") from error
    types = _Types(inferred.graph)
    found = {
        node.name: types.of_product(node)
        for node in inferred.graph.node
        if node.op_type in _PRODUCTS
    }
    return {name: word for name, word in found.items() if word}


class _Types:
    """The element types of a graph's tensors, and which of them were dequantized from what."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._producer = {name: node for node in graph.node for name in node.output}
        self._types: dict[str, int] = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self._types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)

    def of_product(self, node: onnx.NodeProto) -> str:
        stored = {self._stored(name) for name in node.input[:2]}
        if len(stored) == 1 and stored <= {"int8", "fp8"}:
            return stored.pop()
        return _WORDS.get(self._types.get(node.input[0], 0), "")

    def _stored(self, name: str) -> str:
        """Return the type that a tensor was dequantized from, empty where it was not."""
        node = self._producer.get(name)
        while node is not None and node.op_type in _SHAPES_ONLY:
            node = self._producer.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return ""
        return _WORDS.get(self._types.get(node.input[0], 0), "")
