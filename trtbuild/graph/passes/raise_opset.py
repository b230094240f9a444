"""Raise old opsets to one that has per-axis QuantizeLinear."""

from __future__ import annotations

import onnx_ir as ir
from onnx import version_converter
from onnx.version_converter import ConvertError

from trtbuild.errors import BuildError

PER_AXIS = 13
"""QuantizeLinear with an axis came with opset 13 (ONNX operator changelog)."""

COMMON = 17
"""LayerNormalization is one operator from 17 on; all nine light models convert to it."""

_IR_WITH_FREE_INITIALIZERS = 8
"""Below IR version 4 the converter knows only initializers that are inputs too."""

_SMALL_BYTES = 1024
"""Constants up to this go through the converter, larger ones around it."""


def raise_opset(
    model: ir.Model, lowest: int = PER_AXIS, raised: int = COMMON
) -> tuple[ir.Model, tuple[str, ...]]:
    """Return the model at opset ``raised`` if it was below ``lowest``, else as it is.

    ``model`` is used up. An initializer of an old file, which is an input too so that it can be
    overridden, becomes a constant.

    Raises:
        BuildError: the model cannot be converted.
    """
    version = model.opset_imports.get("", 1)
    if version >= lowest:
        return model, ()
    weights = _take_weights(model)
    proto = ir.to_proto(model)
    proto.ir_version = max(proto.ir_version, _IR_WITH_FREE_INITIALIZERS)
    try:
        converted = version_converter.convert_version(proto, raised)
    except (RuntimeError, ValueError, ConvertError) as error:
        raise BuildError(
            f"opset {version} of the model cannot be raised to {raised}, which is needed: "
            f"{error}. Export the model with opset {raised} or higher"
        ) from error
    result = ir.from_proto(converted)
    _put_weights(result, weights)
    return result, (f"opset {version} raised to {raised}",)


def _take_weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Make inputs of the large constants and return their values by name.

    The converter goes through protobuf, which ends at 2 GiB, and forgets where external data
    lies. What it reads itself (axes, shapes, scales) is small.
    """
    graph = model.graph
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in tuple(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _SMALL_BYTES or value.is_graph_output():
            continue
        weights[name] = tensor
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        del graph.initializers[name]
        if value not in graph.inputs:
            graph.inputs.append(value)
    return weights


def _put_weights(model: ir.Model, weights: dict[str, ir.TensorProtocol]) -> None:
    inputs = [value for value in model.graph.inputs if value.name in weights]
    kept = [value for value in model.graph.inputs if value.name not in weights]
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
    for value in inputs:
        value.const_value = weights[value.name or ""]
        model.graph.register_initializer(value)
