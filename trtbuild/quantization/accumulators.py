"""Quantized matrix products whose sums FP16 could not hold before they are scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtbuild.graph.model import load_model
from trtbuild.quantization.casting import HALF_LIMIT, MARGIN

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from trtbuild.graph import Graph

_PRODUCTS = ("Gemm", "MatMul")


def wide_products(graph: Graph, amax: Mapping[str, float]) -> dict[str, float]:
    """Return the products of a Q/DQ graph that must hand out FP32, with their largest sums.

    ``amax`` are measured magnitudes by tensor; what was not measured counts as infinite.
    TensorRT-RTX 1.7 scales the sum of a product of codes by the activation's scale, writes
    that, in FP16 where the product is FP16, and multiplies with the scales of the weight's
    channels in the next kernel (layers of such engines for sm_89 and sm_120: ``gemm``, out
    Half, then ``kgen`` with [1, channels] Half). So what passes between them is the result over
    the channel's scale, some 1,000 times larger. Convolutions hand out FP32 there.
    """
    found: dict[str, float] = {}
    for node in load_model(graph.path).graph:
        scale = _weight_scale(node) if node.op_type in _PRODUCTS else None
        if scale is None:
            continue
        magnitude = amax.get(node.outputs[0].name or "")
        largest = np.inf
        if magnitude is not None:
            largest = (magnitude + _bias(node)) / float(scale.min())
        if largest * MARGIN > HALF_LIMIT:
            found[node.name or ""] = largest
    return found


def _weight_scale(node: ir.Node) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """Return the scales of a quantized weight, None for another node."""
    for value in node.inputs[:2]:
        pair = value.producer() if value is not None else None
        if pair is None or pair.op_type != "DequantizeLinear":
            return None
        codes, scale = pair.inputs[:2]
        if codes is not None and codes.const_value is not None and scale is not None:
            tensor = scale.const_value
            return None if tensor is None else np.asarray(tensor.numpy(), np.float32)
    return None


def _bias(node: ir.Node) -> float:
    bias = node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004  Gemm's third
    if bias is None or bias.const_value is None:
        return 0.0
    return float(np.abs(bias.const_value.numpy()).max(initial=0.0))
