"""What ONNX Runtime's optimizer leaves undone, or does to the harm of speed, on a processor.

Measured with ONNX Runtime 1.32 on AVX512-VNNI (``docs/benchmarks.md``); ADR 0008.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

SLOW_FUSIONS = ("BiasGeluFusion", "SkipLayerNormFusion")
"""Optimizers that stay off: their fused kernels are slower than what they replace.

On MiniLM, 8 texts of 128 tokens, on one thread:
1.86 times FP32 with both, 2.04 without the second, 1.97 without the first, 2.11 without both.
"""

_PRODUCT = "MatMulIntegerToFloat"
_BIAS = 6
"""The place of the optional bias among the inputs of ``MatMulIntegerToFloat``."""


def fuse_biases(model: onnx.ModelProto) -> int:
    """Move biases behind integer products into the products; return how many.

    ONNX Runtime does so for ``Gemm`` and for products that it quantizes itself, but not where
    the product comes from Q/DQ pairs. A bias is a constant vector [columns of the weight] that
    an Add brings to the product, which nothing else reads.
    """
    graph = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    readers: dict[str, int] = {}
    for node in graph.node:
        for tensor in node.input:
            readers[tensor] = readers.get(tensor, 0) + 1
    outputs = {value.name for value in graph.output}
    products = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == _PRODUCT
        and readers.get(node.output[0]) == 1
        and node.output[0] not in outputs
    }
    fused = []
    for add in graph.node:
        if add.op_type != "Add":
            continue
        for tensor, bias in (tuple(add.input), tuple(reversed(add.input))):
            if tensor in products and _fits(products[tensor], bias, shapes):
                _attach(products[tensor], bias, add.output[0])
                fused.append(add)
                break
    for add in fused:
        graph.node.remove(add)
    return len(fused)


def _fits(product: onnx.NodeProto, bias: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    weight = shapes.get(product.input[1], ())
    taken = len(product.input) > _BIAS and product.input[_BIAS]
    return bool(weight) and not taken and shapes.get(bias) == weight[-1:]


def _attach(product: onnx.NodeProto, bias: str, output: str) -> None:
    missing = _BIAS - len(product.input)
    product.input.extend([*[""] * missing, bias] if missing >= 0 else [])
    product.input[_BIAS] = bias
    product.output[0] = output
