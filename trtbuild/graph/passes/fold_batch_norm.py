"""Fold batch normalization into the convolution or matrix product before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    import numpy.typing as npt

_WEIGHT_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0}


def fold_batch_norm(model: ir.Model) -> tuple[str, ...]:
    """Fold BatchNormalization (inference) into the Conv, ConvTranspose or Gemm that feeds it.

    The weights change by rounding only: products are computed in float64 and stored in the
    weights' own type.
    """
    folded = []
    for norm in tuple(model.graph):
        if norm.op_type != "BatchNormalization" or not _folds(norm):
            continue
        _fold(model.graph, norm)
        folded.append(norm.name or "BatchNormalization")
    return (f"{len(folded)} batch normalizations folded",) if folded else ()


def _folds(norm: ir.Node) -> bool:
    data = norm.inputs[0]
    layer = data.producer() if data is not None else None
    if data is None or layer is None or layer.op_type not in _WEIGHT_CHANNEL_AXIS:
        return False
    if len(data.uses()) != 1 or data.is_graph_output() or len(norm.outputs) != 1:
        return False
    if layer.op_type == "ConvTranspose" and layer.attributes.get_int("group", 1) != 1:
        return False
    if layer.op_type == "Gemm" and not _plain_gemm(layer):
        return False
    constants = (*layer.inputs[1:], *norm.inputs[1:])
    return all(v is None or v.const_value is not None for v in constants)


def _plain_gemm(layer: ir.Node) -> bool:
    attributes = layer.attributes
    return (
        attributes.get_int("transB", 0) == 1
        and attributes.get_float("alpha", 1.0) == 1.0
        and attributes.get_float("beta", 1.0) == 1.0
    )


def _constant(node: ir.Node, index: int) -> npt.NDArray[np.float64]:
    value = node.inputs[index]
    if value is None or value.const_value is None:
        raise ValueError(f"input {index} of {node.name} is no constant")
    return value.const_value.numpy().astype(np.float64)


def _fold(graph: ir.Graph, norm: ir.Node) -> None:
    data = norm.inputs[0]
    layer = data.producer() if data is not None else None
    if layer is None or layer.inputs[1] is None or layer.inputs[1].const_value is None:
        raise ValueError(f"{norm.name} has no layer to fold into")
    scale, shift, mean, variance = (_constant(norm, i) for i in range(1, 5))
    factor = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    weight = layer.inputs[1].const_value.numpy()
    has_bias = len(layer.inputs) > 2 and layer.inputs[2] is not None  # noqa: PLR2004  input 2
    bias = _constant(layer, 2) if has_bias else np.zeros_like(mean)
    along = [1] * weight.ndim
    along[_WEIGHT_CHANNEL_AXIS[layer.op_type]] = -1
    new_weight = (weight.astype(np.float64) * factor.reshape(along)).astype(weight.dtype)
    new_bias = ((bias - mean) * factor + shift).astype(weight.dtype)
    layer.resize_inputs(3)
    layer.replace_input_with(1, _initializer(graph, f"{layer.name}.folded_weight", new_weight))
    layer.replace_input_with(2, _initializer(graph, f"{layer.name}.folded_bias", new_bias))
    norm.outputs[0].replace_all_uses_with(layer.outputs[0], replace_graph_outputs=True)
    graph.remove(norm, safe=True)


def _initializer(graph: ir.Graph, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value
