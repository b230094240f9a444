"""Mean, mean square and magnitude of every channel of an activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from trtbuild.graph.model import infer_shapes, load_model, save_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from trtbuild.graph import Graph
    from trtbuild.quantization.channel_statistics import ChannelStatistics

_SUFFIX = ".squared"


@dataclass(frozen=True, kw_only=True)
class ChannelMoments:
    """What techniques know of one activation; all float64, [channels]."""

    amax: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    square: npt.NDArray[np.float64]


def with_squares(graph: Graph, tensors: Iterable[str], out: Path) -> Graph:
    """Return ``graph`` with the square of each tensor beside it, written to ``out``.

    The channel statistics of those give mean squares.
    """
    model = load_model(graph.path)
    values = {value.name: value for value in model.graph.inputs}
    values.update({v.name: v for node in model.graph for v in node.outputs})
    for tensor in tensors:
        value = values[tensor]
        node = ir.node("Mul", [value, value], name=f"{tensor}{_SUFFIX}")
        node.outputs[0].name = f"{tensor}{_SUFFIX}"
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        model.graph.append(node)
    model.graph.sort()
    infer_shapes(model)
    return save_model(model, out)


def and_squares(tensors: Mapping[str, int]) -> dict[str, int]:
    """Return the tensors and the squares that :func:`with_squares` adds, with their axes."""
    return {**tensors, **{f"{name}{_SUFFIX}": axis for name, axis in tensors.items()}}


def moments_of(
    statistics: Mapping[str, ChannelStatistics], tensors: Iterable[str]
) -> dict[str, ChannelMoments]:
    """Return the moments of ``tensors`` from the statistics of them and of their squares."""
    return {
        name: ChannelMoments(
            amax=statistics[name].amax,
            mean=statistics[name].mean,
            square=statistics[f"{name}{_SUFFIX}"].mean,
        )
        for name in tensors
    }
