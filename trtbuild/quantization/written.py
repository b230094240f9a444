"""Read back the weights that a Q/DQ graph holds, whatever type its codes have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtbuild.graph.model import load_model

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx_ir as ir

    from trtbuild.graph import Graph


@dataclass(frozen=True, kw_only=True)
class WrittenWeight:
    """A dequantized weight and the scale of each of its elements; float64, one shape."""

    values: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]


def written_weights(network: Graph) -> dict[str, WrittenWeight]:
    """Return the weight (input 1) of each node whose weight is a DequantizeLinear of constants.

    Keys are the nodes' names. Weights that are quantized in another way are left out.
    """
    found = {}
    for node in load_model(network.path).graph:
        source = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] else None
        if source is not None and source.op_type == "DequantizeLinear":
            weight = _dequantized(source)
            if weight is not None:
                found[node.name or ""] = weight
    return found


def _dequantized(node: ir.Node) -> WrittenWeight | None:
    """Return what a DequantizeLinear gives, None if it reads something that is no constant."""
    arrays = []
    for value in node.inputs:
        if value is None or value.const_value is None:
            return None
        arrays.append(value.const_value.numpy().astype(np.float64))
    codes, scale = arrays[:2]
    axis = node.attributes.get_int("axis", 1)
    block = node.attributes.get_int("block_size", 0)
    wide = [_wide(array, codes.shape, axis, block) for array in (scale, *arrays[2:])]
    zero_point = wide[1] if len(wide) > 1 else 0.0
    return WrittenWeight(values=(codes - zero_point) * wide[0], scale=wide[0])


def _wide(
    array: npt.NDArray[np.float64], shape: tuple[int, ...], axis: int, block: int
) -> npt.NDArray[np.float64]:
    """Return a scale or zero point, per tensor, axis or block, for each element."""
    axis %= max(len(shape), 1)
    if block and array.ndim == len(shape):
        repeated = np.repeat(array, block, axis=axis)
        return np.take(repeated, np.arange(shape[axis]), axis=axis)
    if array.ndim == 1 and array.size > 1:
        array = array.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.broadcast_to(array.reshape(()) if array.size == 1 else array, shape)
