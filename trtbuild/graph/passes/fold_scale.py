"""Fold the multiplication by a constant per channel into the convolution before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtbuild.graph.passes.channels import convolution_and_constant
from trtbuild.graph.passes.rewiring import absorb_node, new_constant

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx_ir as ir


def fold_scale(model: ir.Model) -> tuple[str, ...]:
    """Turn ``Mul(Conv(x, w, b), c)`` into ``Conv(x, w * c, b * c)``, c one number per channel.

    Weights change by rounding only: products are computed in float64.
    """
    folded = 0
    for mul in tuple(model.graph):
        found = convolution_and_constant(mul) if mul.op_type == "Mul" else None
        if found is None:
            continue
        layer, factor = found
        for index in range(1, len(layer.inputs)):
            _scale(model.graph, layer, index, factor)
        absorb_node(mul, layer.outputs[0])
        folded += 1
    return (f"{folded} multiplications folded into weights",) if folded else ()


def _scale(
    graph: ir.Graph, layer: ir.Node, index: int, factor: npt.NDArray[np.generic]
) -> None:
    value = layer.inputs[index]
    if value is None or value.const_value is None:
        return
    array = value.const_value.numpy()
    along = factor.astype(np.float64).reshape(-1, *(1,) * (array.ndim - 1))
    scaled = (array.astype(np.float64) * along).astype(array.dtype)
    name = f"{layer.name}.scaled_{index}_{value.name}"
    layer.replace_input_with(index, new_constant(graph, name, scaled))
