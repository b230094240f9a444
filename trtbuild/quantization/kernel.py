"""The compiled loop that counts magnitudes into a histogram and finds the extremes.

Numba compiles it on the first call and keeps the machine code on disk: beside this file where
that may be written, else in the user's cache folder, else (``NUMBA_CACHE_DIR`` aside) nowhere.
The code there is bound to this file, this version of Numba and this processor.
"""

from __future__ import annotations

import functools
import pickle
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from trtbuild.quantization.ranges import BINS

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Array = npt.NDArray[Any]

BIN_BITS = 11
"""``BINS`` is 2 to this, so that the width of a bin is a power of two as well."""

ZERO_EXPONENT = -1074
"""Exponent of the smallest float64: the histogram of a tensor that is 0 everywhere."""

_LOWEST_EXPONENT = -1000
"""Below any float32; lower ranges of float64 share this, so that 1 / width stays finite."""

_BLOCK = 2048
"""Values that are looked at twice, for extremes and bins: 8 KiB, which the L1 cache holds."""

_SINGLE_LIMIT = float(np.finfo(np.float32).max)

_CACHE_ERRORS = (
    RuntimeError,  # no folder to write to
    OSError,  # a full disk
    # A damaged file (Python library reference, "pickle", on what unpickling may raise).
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    ValueError,
    pickle.UnpicklingError,
)

_compiled = numba.njit(nogil=True, error_model="numpy")


@_compiled
def _extremes(keys: Array, shift: int, mask: int) -> tuple[int, int]:
    """Return the least and greatest of floats by their bits, seen as integers of that order."""
    low = mask
    high = ~mask
    for i in range(keys.size):
        key = keys[i]
        # Negative floats grow with their bits; turned around, integers order all of them,
        # NaN beyond the infinities, and a loop over integers is one of vector instructions.
        key ^= (key >> shift) & mask
        low = min(low, key)
        high = max(high, key)
    return low, high


@_compiled
def _bins(values: Array, scale: float, bins: Array) -> None:
    for i in range(values.size):
        bins[i] = np.int32(abs(values[i]) * scale)


@_compiled
def _bins_wide(values: Array, scale: float, bins: Array) -> None:
    for i in range(values.size):
        bins[i] = np.int32(np.float64(abs(values[i])) * scale)


@_compiled
def _count(bins: Array, one: Array, two: Array, three: Array, four: Array) -> None:
    """Count in turn into four histograms: equal neighbors would wait for each other."""
    rest = bins.size // 4 * 4
    for quarter in range(bins.size // 4):
        i = 4 * quarter
        one[np.uint32(bins[i])] += np.uint32(1)
        two[np.uint32(bins[i + 1])] += np.uint32(1)
        three[np.uint32(bins[i + 2])] += np.uint32(1)
        four[np.uint32(bins[i + 3])] += np.uint32(1)
    for i in range(rest, bins.size):
        one[np.uint32(bins[i])] += np.uint32(1)


@_compiled
def _flush(parts: Array, counts: Array) -> None:
    for part in range(4):
        for i in range(counts.size):
            counts[i] += np.int64(parts[part, i])
            parts[part, i] = 0


def grow(counts: Array, exponent: int, wanted: int) -> None:
    """Merge neighboring bins of ``counts``, whose range is ``2 ** exponent``, to ``wanted``."""
    group = 1 << min(wanted - exponent, BIN_BITS)
    kept = BINS // group
    merged = counts.reshape((kept, group)).sum(axis=1)
    counts[:] = 0
    counts[:kept] = merged


_grow = _compiled(grow)


@_compiled
def _exponent(bits: int, mantissa: int) -> int:
    """Return the e with ``2 ** (e - 1) <= x < 2 ** e`` of a positive float's bits."""
    field = bits >> mantissa
    bias = 126 if mantissa == 23 else 1022  # noqa: PLR2004  binary32 and binary64, IEEE 754
    if field > 0:
        return max(field - bias, _LOWEST_EXPONENT)
    length = 0
    while bits > 0:
        bits >>= 1
        length += 1
    return max(length - bias - mantissa, _LOWEST_EXPONENT)


def _accumulate(
    values: Array, keys: Array, counts: Array, exponent: int, layout: Array
) -> tuple[bool, int, int, int]:
    """Count all ``values``; return whether they are finite, the range's exponent, extremes.

    ``keys`` are the bits of ``values``. ``layout`` is the width of its integers minus 1, their
    greatest, and the bits of a mantissa.
    """
    shift, mask, mantissa = layout[0], layout[1], np.int64(layout[2])
    infinity = (np.int64(mask) >> mantissa) << mantissa
    low, high = mask, ~mask
    scale_of_type = np.empty(1, values.dtype)
    parts = np.zeros((4, BINS), np.uint32)
    bins = np.empty(_BLOCK, np.uint32)
    for start in range(0, values.size, _BLOCK):
        end = min(start + _BLOCK, values.size)
        least, greatest = _extremes(keys[start:end], shift, mask)
        low, high = min(low, least), max(high, greatest)
        magnitude = max(np.int64(greatest), np.int64(~least))
        if np.int64(least) >= 0:
            magnitude = np.int64(greatest)
        if magnitude >= infinity:
            return False, exponent, low, high
        if magnitude > 0:
            wanted = _exponent(int(magnitude), int(mantissa))
            if wanted > exponent:
                _flush(parts, counts)
                _grow(counts, exponent, wanted)
                exponent = wanted
        if exponent == ZERO_EXPONENT:
            counts[0] += end - start
            continue
        # A power of two, so the product is exact and truncation is the bin of every value.
        scale = 2.0 ** (BIN_BITS - exponent)
        if scale > _SINGLE_LIMIT:
            _bins_wide(values[start:end], scale, bins)
        else:
            scale_of_type[0] = scale
            _bins(values[start:end], scale_of_type[0], bins)
        _count(bins[: end - start], parts[0], parts[1], parts[2], parts[3])
    _flush(parts, counts)
    return True, exponent, low, high


_LAYOUTS: dict[np.dtype[Any], Array] = {
    np.dtype(np.float32): np.array([31, 0x7FFFFFFF, 23], np.int32),
    np.dtype(np.float64): np.array([63, 0x7FFFFFFFFFFFFFFF, 52], np.int64),
}


@functools.cache
def _loop(dtype: np.dtype[Any]) -> Callable[..., Any]:
    """Return the compiled loop for floats of ``dtype``; without a cache where that fails.

    Raises:
        numba.NumbaError: it cannot be compiled.
    """
    arguments = (
        np.empty(0, dtype),
        np.empty(0, _LAYOUTS[dtype].dtype),
        np.zeros(BINS, np.int64),
        ZERO_EXPONENT,
        _LAYOUTS[dtype],
    )
    try:
        made: Callable[..., Any] = numba.njit(cache=True, nogil=True, error_model="numpy")(
            _accumulate
        )
        made(*arguments)
    except _CACHE_ERRORS:
        made = _compiled(_accumulate)
        made(*arguments)
    return made


def accumulate(
    values: Array, counts: npt.NDArray[np.int64], exponent: int
) -> tuple[bool, int, float, float]:
    """Count ``values`` (float32 or float64, flat, contiguous, fewer than 2 ** 32) into bins.

    Returns whether all are finite (else ``counts`` are of no use), the exponent of the range,
    which grows as needed, the minimum and the maximum.
    """
    layout = _LAYOUTS[values.dtype]
    loop = _loop(values.dtype)
    keys = values.view(layout.dtype)
    finite, exponent, low, high = loop(values, keys, counts, exponent, layout)
    extremes = np.array([low, high], layout.dtype)
    extremes ^= (extremes >> layout[0]) & layout[1]
    # + 0.0 turns -0.0 into 0.0: which of them is the minimum depends on the order.
    least, greatest = (extremes.view(values.dtype) + 0.0).tolist()
    return bool(finite), int(exponent), least, greatest
