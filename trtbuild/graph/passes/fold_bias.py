"""Fold the addition of a constant per channel into the convolution before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trtbuild.graph.passes.channels import convolution_and_constant

if TYPE_CHECKING:
    import numpy.typing as npt


def fold_bias(model: ir.Model) -> tuple[str, ...]:
    """Turn ``Add(Conv(x, w, b), c)`` into ``Conv(x, w, b + c)``, c one number per channel."""
    folded = 0
    for add in tuple(model.graph):
        found = convolution_and_constant(add) if add.op_type == "Add" else None
        if found is None:
            continue
        layer, constant = found
        value = ir.val(
            f"{layer.name}.bias_of_{add.name}",
            const_value=ir.tensor(_plus_bias(layer, constant)),
        )
        model.graph.register_initializer(value)
        layer.resize_inputs(3)
        layer.replace_input_with(2, value)
        add.outputs[0].replace_all_uses_with(layer.outputs[0], replace_graph_outputs=True)
        model.graph.remove(add, safe=True)
        folded += 1
    return (f"{folded} additions folded into a bias",) if folded else ()


def _plus_bias(layer: ir.Node, constant: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None  # noqa: PLR2004  input 2
    if bias is None or bias.const_value is None:
        return constant
    return np.asarray(np.add(bias.const_value.numpy(), constant))
