"""From intervals to integers: scales, zero points, and the codes of weights and biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trtbuild.quantization import formats

if TYPE_CHECKING:
    import numpy.typing as npt

    from trtbuild.engine import Rest

_LEAST_SCALE = float(np.ldexp(1.0, -100))
"""Scales stay normal float32 numbers; below this a tensor is as good as 0."""

_LEAST_PRODUCT = float(np.ldexp(1.0, -120))
"""The scale of a bias is a product of two scales, and must be a normal float32 number too."""

_INT32_ROOM = float(1 << 30)
"""Largest code of a bias: half of int32, so that the accumulator has room too."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Scale (float32, [] or [channels]) and zero point (one integer type) of a tensor."""

    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[Any]


def symmetric_grid(amax: npt.NDArray[np.float64], bits: int = 8, rest: Rest = "fp32") -> Grid:
    """Return the int8 grid of tensors whose largest magnitudes are ``amax`` ([] or [channels]).

    TensorRT's int8 is symmetric, with no zero point (developer guide 11.0, "Working with
    Quantized Types"). We divide by 127, not 128, so that ``amax`` itself is not clipped. An
    ``amax`` of 0 gets scale 1: every code is then 0, whatever the scale. Scales are numbers
    that ``rest`` has, where any is near.
    """
    steps = (1 << (bits - 1)) - 1
    scale = np.where(amax > 0, np.maximum(amax / steps, _LEAST_SCALE), 1.0)
    scale = formats.rounded_up(scale, rest)
    return Grid(scale=scale, zero_point=np.zeros(scale.shape, dtype=np.int8))


def fp8_grid(amax: npt.NDArray[np.float64], rest: Rest) -> Grid:
    """Return the E4M3 grid of tensors whose largest magnitudes are ``amax`` ([] or [channels]).

    ``amax`` becomes 448, the largest number (TensorRT developer guide 11.0, "Working with
    Quantized Types"). Scales are as those of :func:`symmetric_grid`.
    """
    scale = np.where(amax > 0, np.maximum(amax / formats.E4M3.largest, _LEAST_SCALE), 1.0)
    scale = formats.rounded_up(scale, rest)
    return Grid(scale=scale, zero_point=np.zeros(scale.shape, dtype=formats.E4M3.dtype))


def fp8_codes(
    weight: npt.NDArray[np.float32], grid: Grid, axis: int | None
) -> npt.NDArray[np.generic]:
    """Return the E4M3 codes of a weight, rounded to the nearest, ties to even."""
    return formats.E4M3.codes(weight.astype(np.float64) / _along(grid.scale, axis, weight.ndim))


def _along(
    scale: npt.NDArray[np.float32], axis: int | None, rank: int
) -> npt.NDArray[np.float64]:
    """Return scales [channels] in the shape that divides an array by channels of ``axis``."""
    wide = scale.astype(np.float64)
    return wide if axis is None else wide.reshape([-1 if i == axis else 1 for i in range(rank)])


def asymmetric_grid(low: float, high: float) -> Grid:
    """Return the uint8 grid of the interval ``low <= 0 <= high``; 0 has an exact code."""
    span = high - low
    scale = max(span / 255, _LEAST_SCALE) if span > 0 else 1.0
    zero_point = int(np.clip(np.rint(-low / scale), 0, 255))
    return Grid(
        scale=np.array(scale, dtype=np.float32), zero_point=np.array(zero_point, dtype=np.uint8)
    )


def channel_amax(weight: npt.NDArray[np.float32], axis: int | None) -> npt.NDArray[np.float64]:
    """Return the largest magnitude of each channel along ``axis``, of all for None."""
    magnitude = np.abs(weight.astype(np.float64))
    if axis is None:
        return np.asarray(magnitude.max(initial=0.0))
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return np.asarray(magnitude.max(axis=others, initial=0.0))


def widen_for_bias(
    amax: npt.NDArray[np.float64],
    bias: npt.NDArray[np.float32],
    input_scale: npt.NDArray[np.float32],
    bits: int,
) -> npt.NDArray[np.float64]:
    """Return ``amax`` raised where the bias would not fit int32 at the resulting scale.

    Shapes: ``amax`` [channels], ``bias`` [channels] or [1], ``input_scale`` [].
    A channel of (nearly) zero weights with a bias is the case: its bias would need codes
    beyond int32. Raising its scale costs nothing, since its weights are (nearly) zero.
    """
    steps = (1 << (bits - 1)) - 1
    largest = np.abs(bias.astype(np.float64)) / _INT32_ROOM
    least = np.maximum(largest, _LEAST_PRODUCT) * steps / float(input_scale)
    return np.where((amax > 0) | (bias != 0), np.maximum(amax, least), 0.0)


def int8_codes(
    weight: npt.NDArray[np.float32], grid: Grid, axis: int | None, bits: int = 8
) -> npt.NDArray[np.int8]:
    """Return the int8 codes of a weight, rounded half to even as QuantizeLinear does."""
    limit = (1 << (bits - 1)) - 1
    codes = np.rint(weight.astype(np.float64) / _along(grid.scale, axis, weight.ndim))
    return np.clip(codes, -limit, limit).astype(np.int8)


def uint8_codes(array: npt.NDArray[np.float32], grid: Grid) -> npt.NDArray[np.uint8]:
    """Return the uint8 codes of a constant."""
    codes = np.rint(array.astype(np.float64) / float(grid.scale)) + int(grid.zero_point)
    return np.asarray(np.clip(codes, 0, 255), dtype=np.uint8)


def int32_codes(
    bias: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]
) -> npt.NDArray[np.int32]:
    """Return the int32 codes of a bias whose scale is input scale times weight scale."""
    codes = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    return np.clip(codes, -_INT32_ROOM * 2 + 1, _INT32_ROOM * 2 - 1).astype(np.int32)
