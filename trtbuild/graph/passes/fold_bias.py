"""Fold the addition of a constant per channel into the convolution before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtbuild.graph.passes.channels import convolution_and_constant
from trtbuild.graph.passes.rewiring import absorb_node, new_constant

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx_ir as ir


def fold_bias(model: ir.Model) -> tuple[str, ...]:
    """Turn ``Add(Conv(x, w, b), c)`` into ``Conv(x, w, b + c)``, c one number per channel."""
    folded = 0
    for add in tuple(model.graph):
        found = convolution_and_constant(add) if add.op_type == "Add" else None
        if found is None:
            continue
        layer, constant = found
        name = f"{layer.name}.bias_of_{add.name}"
        layer.resize_inputs(3)
        layer.replace_input_with(
            2, new_constant(model.graph, name, _plus_bias(layer, constant))
        )
        absorb_node(add, layer.outputs[0])
        folded += 1
    return (f"{folded} additions folded into a bias",) if folded else ()


def _plus_bias(layer: ir.Node, constant: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None  # noqa: PLR2004  input 2
    if bias is None or bias.const_value is None:
        return constant
    return np.asarray(np.add(bias.const_value.numpy(), constant))
