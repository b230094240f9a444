"""Codes and scales of weights in blocks: INT4, NVFP4 and MXFP4, by least squared error.

A matrix [inner, outer] is cut along its inner axis, which products sum over, into blocks that
share a scale. NVFP4's scales are E4M3 numbers times one power of two for the whole weight,
MXFP4's are powers of two: with both, every weight is a number that FP16 has, unless it is
smaller than FP16's least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from trtbuild.quantization import formats

if TYPE_CHECKING:
    import numpy.typing as npt

    from trtbuild.engine import Rest

    Doubles = npt.NDArray[np.float64]
    Singles = npt.NDArray[np.float32]

BlockFormat = Literal["int4", "nvfp4", "mxfp4"]

BLOCKS = {"nvfp4": 16, "mxfp4": 32}
"""The block sizes that belong to a format; INT4 has none of its own."""

INT4_BLOCKS = (128, 64, 32)
"""Those that TensorRT-RTX was seen to build and fuse, largest first."""

_FACTORS = np.linspace(1.0, 0.6, 17)
"""Parts of the largest magnitude that a block's scale is tried for. Clipping a lone outlier to
gain finer steps for the others pays down to about 0.6 for 4 bits and a normal distribution."""

_LEAST = float(np.ldexp(1.0, -24))
"""FP16's least number: no scale is smaller, so that all of them are FP16 numbers."""

_HALVES_END, _ONES_END = 2, 4

_PIECE = 1 << 22
"""Elements that are searched at once, so that temporaries stay small."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A matrix in blocks. ``codes`` [inner, outer], ``scales`` [inner / block, outer].

    The value of an element is its code times the scale of its block. ``scale_codes`` are
    NVFP4's scales in E4M3, and ``unit`` what they are multiples of; None for other formats.
    """

    codes: npt.NDArray[np.generic]
    scales: Singles
    scale_codes: npt.NDArray[np.generic] | None = None
    unit: Singles | None = None


def block_size(inner: int, kind: BlockFormat, wanted: int) -> int:
    """Return the size of blocks for an axis, 0 where none divides it.

    For INT4 that is the largest of 128, 64 and 32 up to ``wanted`` that divides it.
    """
    sizes = (BLOCKS[kind],) if kind in BLOCKS else INT4_BLOCKS
    fitting = (size for size in sizes if inner % size == 0)
    return next((size for size in fitting if size <= wanted or kind in BLOCKS), 0)


def blocks_of(matrix: Singles, kind: BlockFormat, block: int, rest: Rest) -> Blocks:
    """Return ``matrix`` [inner, outer] in blocks of ``block`` elements, scales of least error.

    ``rest`` is the type of the scales: INT4's are numbers that it has.
    """
    inner, outer = matrix.shape
    grouped = matrix.reshape(inner // block, block, outer)
    unit = _unit(grouped) if kind == "nvfp4" else 1.0
    scales = np.empty((inner // block, outer), np.float64)
    codes = np.empty(grouped.shape, np.float32)
    rows = max(1, _PIECE // (block * outer))
    for start in range(0, len(grouped), rows):
        piece = slice(start, start + rows)
        scales[piece], codes[piece] = _search(grouped[piece], kind, unit, rest)
    dtype = formats.INT4 if kind == "int4" else formats.E2M1.dtype
    plain = codes.reshape(inner, outer)
    packed = plain.astype(np.int8).astype(dtype) if kind == "int4" else plain.astype(dtype)
    if kind != "nvfp4":
        return Blocks(codes=packed, scales=scales.astype(np.float32))
    return Blocks(
        codes=packed,
        scales=scales.astype(np.float32),
        scale_codes=formats.E4M3.codes(scales / unit),
        unit=np.array(unit, np.float32),
    )


def _unit(grouped: Singles) -> float:
    """Return the power of two that NVFP4's block scales are multiples of."""
    largest = float(np.abs(grouped).max(initial=0.0)) / formats.E2M1.largest
    unit = formats.power_of_two(np.array(largest / formats.E4M3.largest))
    return max(float(unit), _LEAST)


def _search(
    grouped: Singles, kind: BlockFormat, unit: float, rest: Rest
) -> tuple[Doubles, Singles]:
    """Return scales [groups, outer] and codes [groups, block, outer] of least squared error."""
    amax = np.abs(grouped).max(axis=1).astype(np.float64)
    best_scale = np.ones_like(amax)
    best_codes = np.zeros_like(grouped)
    least = np.full(amax.shape, np.inf)
    for scale in _candidates(amax, kind, unit, rest):
        narrow = scale.astype(np.float32)[:, None, :]
        codes = _codes(grouped / narrow, kind)
        error = np.square(grouped - codes * narrow).sum(axis=1, dtype=np.float64)
        better = error < least
        least = np.where(better, error, least)
        best_scale = np.where(better, scale, best_scale)
        best_codes = np.where(better[:, None, :], codes, best_codes)
    return best_scale, best_codes


def _candidates(amax: Doubles, kind: BlockFormat, unit: float, rest: Rest) -> list[Doubles]:
    if kind == "mxfp4":
        whole = formats.power_of_two(amax / formats.E2M1.largest)
        return [np.maximum(whole * part, _LEAST) for part in (1.0, 0.5)]
    if kind == "nvfp4":
        exact = amax / formats.E2M1.largest / unit
        tried = [formats.E4M3.nearest(exact * part) for part in _FACTORS]
        smallest = float(np.ldexp(1.0, -9))  # E4M3's least number
        return [np.maximum(scale, smallest) * unit for scale in tried]
    steps = [np.maximum(amax * part / formats.INT4_HIGHEST, _LEAST) for part in _FACTORS]
    return [formats.rounded_up(step, rest).astype(np.float64) for step in steps]


def _codes(quotients: Singles, kind: BlockFormat) -> Singles:
    """Return the values of the nearest codes, in FP32, which has them all."""
    if kind == "int4":
        whole: Singles = np.rint(quotients)
        return whole.clip(formats.INT4_LOWEST, formats.INT4_HIGHEST)
    magnitude = np.abs(quotients)
    # E2M1 counts 0, 0.5 ... 2, then 3, 4, then 6.
    step = np.select([magnitude < _HALVES_END, magnitude < _ONES_END], [0.5, 1.0], 2.0)
    value = np.minimum(np.rint(magnitude / step) * step, formats.E2M1.largest)
    signed: Singles = np.copysign(value, quotients).astype(np.float32)
    return signed
