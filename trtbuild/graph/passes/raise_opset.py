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


def raise_opset(
    model: ir.Model, lowest: int = PER_AXIS, raised: int = COMMON
) -> tuple[ir.Model, tuple[str, ...]]:
    """Return the model at opset ``raised`` if it was below ``lowest``, else as it is.

    Raises:
        BuildError: the model cannot be converted.
    """
    version = model.opset_imports.get("", 1)
    if version >= lowest:
        return model, ()
    proto = ir.to_proto(model)
    proto.ir_version = max(proto.ir_version, _IR_WITH_FREE_INITIALIZERS)
    try:
        converted = version_converter.convert_version(proto, raised)
    except (RuntimeError, ValueError, ConvertError) as error:
        raise BuildError(
            f"opset {version} of the model cannot be raised to {raised}, which is needed: "
            f"{error}. Export the model with opset {raised} or higher"
        ) from error
    return ir.from_proto(converted), (f"opset {version} raised to {raised}",)
