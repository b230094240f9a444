"""Move scale from the channels of activations into the weights that read them.

SmoothQuant (Xiao et al., ICML 2023) for matrix products and cross-layer equalization (Nagel et
al., ICCV 2019) for convolutions are the same rewrite: channel ``c`` of an activation is divided
by ``s[c]`` and the weights that read it are multiplied by ``s[c]``. The function stays the same
up to rounding; the activation, which has one scale for all channels, becomes easier to
quantize, and the weights, which have one scale per output channel, a little harder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trtbuild.graph.model import infer_shapes, load_model, save_model
from trtbuild.graph.passes.rewiring import new_constant
from trtbuild.quantization.sites import convolution_sites, product_sites

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from trtbuild.graph import Graph
    from trtbuild.quantization.moments import ChannelMoments
    from trtbuild.quantization.sites import Site

    Doubles = npt.NDArray[np.float64]

VERSION = 1
"""Part of the key of a migrated graph; raised when it starts to give other graphs."""

ALPHAS = (0.5, 0.65, 0.8)
"""Shares of an activation's range that go into the weights; SmoothQuant's are 0.5 to 0.9."""

_STEPS = 127.0

_GAIN_FREE = 1.0
_GAIN_ADDED = 2.0
"""Factor by which the expected error must fall: for nothing, or for one more multiplication."""

_LIMIT = 1e4
"""Largest factor of one channel; beyond it float32 would lose bits of the others."""

SITES: dict[str, Callable[[ir.Model, Collection[str]], tuple[Site, ...]]] = {
    "smooth": product_sites,
    "equalize": convolution_sites,
}


def tensors_to_measure(graph: Graph, nodes: Collection[str], technique: str) -> dict[str, int]:
    """Return the activations that ``technique`` could scale, with their channels' axes."""
    sites = SITES[technique](load_model(graph.path), nodes)
    return {site.tensor.name or "": site.axis for site in sites}


def migrated(
    graph: Graph,
    nodes: Collection[str],
    technique: str,
    moments: Mapping[str, ChannelMoments],
    out: Path,
) -> tuple[Graph, int]:
    """Return ``graph`` with scales moved, written to ``out``, and at how many activations.

    ``nodes`` are those that will be quantized; ``moments`` are those of the tensors that
    :func:`tensors_to_measure` names. At each activation the factor of least expected error is
    taken, of none and :data:`ALPHAS`.
    """
    model = load_model(graph.path)
    moved = 0
    for site in SITES[technique](model, nodes):
        factor = _factor(site, moments[site.tensor.name or ""])
        if factor is not None:
            _move(model.graph, site, factor)
            moved += 1
    model.graph.sort()
    infer_shapes(model)
    return save_model(model, out), moved


def _factor(site: Site, moments: ChannelMoments) -> Doubles | None:
    """Return s [channels], None if nothing is much better than leaving all as it is."""
    weights = [_Weight.of(reader) for reader in site.readers]
    magnitude = np.max([weight.magnitude() for weight in weights], axis=0)
    if len(magnitude) != len(moments.amax):
        return None
    least = _expected_error(weights, moments, np.ones(len(magnitude)))
    least /= _GAIN_FREE if site.makers else _GAIN_ADDED
    best = None
    for alpha in ALPHAS:
        factor = _scales(moments.amax, magnitude, alpha)
        error = _expected_error(weights, moments, factor)
        if error < least:
            best, least = factor, error
    return best


def _scales(amax: Doubles, magnitude: Doubles, alpha: float) -> Doubles:
    """Return amax ** alpha / magnitude ** (1 - alpha), about 1 in the geometric mean.

    Channels without values or weights get what the others get on average.
    """
    used = (amax > 0) & (magnitude > 0)
    if not used.any():
        return np.ones(len(amax))
    logs = alpha * np.log(amax[used]) - (1 - alpha) * np.log(magnitude[used])
    scales = np.ones(len(amax))
    scales[used] = np.exp(np.clip(logs - logs.mean(), -np.log(_LIMIT), np.log(_LIMIT)))
    return scales


@dataclass(frozen=True, kw_only=True)
class _Weight:
    """A weight as [groups, outputs of a group, inputs of a group, positions]."""

    array: Doubles

    @classmethod
    def of(cls, reader: ir.Node) -> _Weight:
        weight = reader.inputs[1]
        if weight is None or weight.const_value is None:
            raise ValueError(f"{reader.name} has no constant weight")
        array = weight.const_value.numpy().astype(np.float64)
        if reader.op_type != "Conv":
            matrix = array if reader.attributes.get_int("transB", 0) else array.T
            return cls(array=matrix[np.newaxis, :, :, np.newaxis])
        groups = reader.attributes.get_int("group", 1)
        shape = (groups, array.shape[0] // groups, array.shape[1], -1)
        return cls(array=array.reshape(shape))

    def magnitude(self) -> Doubles:
        """Return the largest magnitude per input channel, [channels]."""
        return np.asarray(np.abs(self.array).max(axis=(1, 3)).reshape(-1))

    def error(self, step: float, square: Doubles, factor: Doubles) -> float:
        """Return the expected squared error of all outputs of the layer, once quantized.

        ``step`` is that of the scaled activation, ``square`` its mean square per channel before
        the factor. Activations get errors uniform in a step, of variance step² / 12 (Widrow and
        Kollár, "Quantization Noise", 2008), but none larger than the values themselves, which
        small channels lose whole. The errors of weights are known.
        """
        groups, _, inputs, _ = self.array.shape
        by_group = (groups, 1, inputs, 1)
        lost = np.minimum((step * factor) ** 2 / 12, square).reshape(by_group)
        of_activation = float((lost * np.square(self.array)).sum())
        scaled = self.array * factor.reshape(by_group)
        steps = np.abs(scaled).max(axis=(2, 3), keepdims=True) / _STEPS
        steps[steps == 0] = 1.0
        wrong = np.square(np.rint(scaled / steps) * steps - scaled)
        signal = (square / factor**2).reshape(by_group)
        return of_activation + float((wrong * signal).sum())


def _expected_error(weights: list[_Weight], moments: ChannelMoments, factor: Doubles) -> float:
    step = float((moments.amax / factor).max()) / _STEPS
    return sum(weight.error(step, moments.square, factor) for weight in weights)


def _move(graph: ir.Graph, site: Site, factor: Doubles) -> None:
    for node, index, axis in site.makers:
        _scale(graph, node, index, _along(node, index, axis, 1 / factor))
    for reader in site.readers:
        _scale(graph, reader, 1, _of_inputs(reader, factor))
    if not site.makers:
        _divide(graph, site, factor)


def _array(node: ir.Node, index: int) -> npt.NDArray[np.float32]:
    value = node.inputs[index]
    if value is None or value.const_value is None:
        raise ValueError(f"input {index} of {node.name} is no constant")
    return np.asarray(value.const_value.numpy(), np.float32)


def _along(node: ir.Node, index: int, axis: int, factor: Doubles) -> Doubles:
    """Return ``factor`` shaped to multiply a constant whose channels lie along ``axis``.

    A bias of one number for all channels becomes one of a number for each.
    """
    rank = max(_array(node, index).ndim, 1)
    if axis > 0 and node.op_type in {"Mul", "Add"}:
        axis -= len(node.outputs[0].shape or ())
    return factor.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def _of_inputs(reader: ir.Node, factor: Doubles) -> Doubles:
    """Return ``factor`` shaped to multiply the weight of a reader."""
    if reader.op_type != "Conv":
        return factor.reshape((1, -1) if reader.attributes.get_int("transB", 0) else (-1, 1))
    weight = _array(reader, 1)
    groups = reader.attributes.get_int("group", 1)
    by_output = np.repeat(factor.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return by_output.reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2))


def _scale(graph: ir.Graph, node: ir.Node, index: int, factor: Doubles) -> None:
    array = _array(node, index)
    scaled = (array.astype(np.float64) * factor).astype(np.float32)
    value = node.inputs[index]
    name = f"{value.name if value is not None else ''}.moved"
    node.replace_input_with(index, new_constant(graph, name, scaled))


def _divide(graph: ir.Graph, site: Site, factor: Doubles) -> None:
    """Multiply the activation by 1 / s for its readers; others read it as it was."""
    name = site.tensor.name or ""
    inverse = new_constant(graph, f"{name}.smoothing", (1 / factor).astype(np.float32))
    node = ir.node("Mul", [site.tensor, inverse], name=f"{name}.smooth")
    result = node.outputs[0]
    result.name = f"{name}.smoothed"
    result.type, result.shape = site.tensor.type, site.tensor.shape
    for reader in site.readers:
        reader.replace_input_with(0, result)
    graph.append(node)
