"""Find convolutions that a constant per channel follows; shared by the passes that fold it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx_ir as ir


def convolution_and_constant(
    node: ir.Node,
) -> tuple[ir.Node, npt.NDArray[np.generic]] | None:
    """Return the Conv that feeds a binary node and the other operand as [channels].

    None unless one operand is the output of a Conv that nothing else reads, the Conv's weight
    and bias are constants, and the other operand is a constant with one number per channel.
    """
    for data, constant in (node.inputs, tuple(reversed(node.inputs))):
        layer = data.producer() if data is not None else None
        if data is None or layer is None or layer.op_type != "Conv":
            continue
        if len(data.uses()) != 1 or data.is_graph_output():
            continue
        weight = layer.inputs[1]
        parameters_constant = all(
            v is None or v.const_value is not None for v in layer.inputs[1:]
        )
        if not parameters_constant or weight is None or weight.const_value is None:
            continue
        if constant is None or constant.const_value is None:
            continue
        shape = weight.const_value.numpy().shape
        vector = _per_channel(constant.const_value.numpy(), len(shape), shape[0])
        if vector is not None:
            return layer, vector
    return None


def _per_channel(
    array: npt.NDArray[np.generic], rank: int, channels: int
) -> npt.NDArray[np.generic] | None:
    """Return ``array`` as [channels] if it broadcasts one number to each channel, else None."""
    if array.ndim > rank:
        return None
    if array.size == 1:
        return np.full(channels, array.reshape(()), dtype=array.dtype)
    padded = (1,) * (rank - array.ndim) + array.shape
    expected = (1, channels, *(1,) * (rank - 2))
    return array.reshape(channels) if padded == expected else None
