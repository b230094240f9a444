"""Fold batch normalization into the convolution or matrix product before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtbuild.graph.passes.rewiring import absorb_node, new_constant

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx_ir as ir

_LAYERS = ("Conv", "ConvTranspose", "Gemm")


def fold_batch_norm(model: ir.Model) -> tuple[str, ...]:
    """Fold BatchNormalization (inference) into the Conv, ConvTranspose or Gemm that feeds it.

    The weights change by rounding only: products are computed in float64 and stored in the
    weights' own type.
    """
    folded = 0
    for norm in tuple(model.graph):
        layer = _layer_before(norm)
        if layer is not None:
            _fold(model.graph, layer, norm)
            folded += 1
    return (f"{folded} batch normalizations folded",) if folded else ()


def _layer_before(norm: ir.Node) -> ir.Node | None:
    """Return the node that ``norm`` can be folded into, None if there is none."""
    if norm.op_type != "BatchNormalization" or norm.attributes.get_int("training_mode", 0) != 0:
        return None
    data = norm.inputs[0]
    layer = data.producer() if data is not None else None
    if data is None or layer is None or layer.op_type not in _LAYERS:
        return None
    if len(data.uses()) != 1 or data.is_graph_output() or len(norm.outputs) != 1:
        return None
    if layer.op_type == "ConvTranspose" and layer.attributes.get_int("group", 1) != 1:
        return None
    if layer.op_type == "Gemm" and not _unscaled(layer):
        return None
    constants = (*layer.inputs[1:], *norm.inputs[1:])
    known = all(v is None or v.const_value is not None for v in constants)
    return layer if known else None


def _unscaled(gemm: ir.Node) -> bool:
    factors = (gemm.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    return all(factor == 1.0 for factor in factors)


def _channel_axis(layer: ir.Node) -> int:
    """Return the axis of the weight along which the layer's output channels lie."""
    if layer.op_type == "Gemm":
        return 0 if layer.attributes.get_int("transB", 0) else 1
    return 1 if layer.op_type == "ConvTranspose" else 0


def _constant(node: ir.Node, index: int) -> npt.NDArray[np.generic]:
    value = node.inputs[index]
    if value is None or value.const_value is None:
        raise ValueError(f"input {index} of {node.name} is no constant")
    return value.const_value.numpy()


def _fold(graph: ir.Graph, layer: ir.Node, norm: ir.Node) -> None:
    scale, shift, mean, variance = (_constant(norm, i).astype(np.float64) for i in range(1, 5))
    factor = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    weight = _constant(layer, 1)
    has_bias = len(layer.inputs) > 2 and layer.inputs[2] is not None  # noqa: PLR2004  input 2
    bias = _constant(layer, 2).astype(np.float64) if has_bias else np.zeros_like(mean)
    along = [1] * weight.ndim
    along[_channel_axis(layer)] = -1
    new_weight = (weight.astype(np.float64) * factor.reshape(along)).astype(weight.dtype)
    new_bias = ((bias - mean) * factor + shift).astype(weight.dtype)
    layer.resize_inputs(3)
    layer.replace_input_with(1, new_constant(graph, f"{layer.name}.folded_weight", new_weight))
    layer.replace_input_with(2, new_constant(graph, f"{layer.name}.folded_bias", new_bias))
    absorb_node(norm, layer.outputs[0])
