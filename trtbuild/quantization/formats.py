"""Numbers of 8 and 4 bits: which values each format has, and the nearest one to any number.

E4M3 and E2M1 have a sign, an exponent and a mantissa; they have no infinity, and a number
beyond the largest becomes the largest, as GPUs convert. E8M0 is a power of two. INT4 counts
from -8 to 7. Definitions: "OCP Microscaling Formats (MX) Specification" 1.0, table 1 and
section 5.4; "FP8 Formats for Deep Learning", Micikevicius et al. 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from trtbuild.engine import Rest

    Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Minifloat:
    """A format of few bits: ``mantissa`` bits of it, the exponent of its least normal number.

    ``largest`` is its largest number.
    """

    mantissa: int
    least_exponent: int
    largest: float
    dtype: np.dtype[np.generic]

    def nearest(self, values: npt.NDArray[np.floating]) -> Doubles:
        """Return the nearest numbers of the format, ties to the even mantissa, saturating."""
        wide = np.asarray(values, dtype=np.float64)
        exponent = np.maximum(np.frexp(wide)[1] - 1, self.least_exponent)
        step = np.ldexp(1.0, exponent - self.mantissa)
        nearest: Doubles = np.rint(wide / step) * step
        return nearest.clip(-self.largest, self.largest)

    def codes(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.generic]:
        """Return the nearest numbers as an array of the format's own type."""
        return self.nearest(values).astype(self.dtype)


E4M3 = Minifloat(
    mantissa=3,
    least_exponent=-6,
    largest=448.0,
    dtype=np.dtype(ml_dtypes.float8_e4m3fn),
)
E2M1 = Minifloat(
    mantissa=1, least_exponent=0, largest=6.0, dtype=np.dtype(ml_dtypes.float4_e2m1fn)
)

INT4 = np.dtype(ml_dtypes.int4)
INT4_LOWEST, INT4_HIGHEST = -8, 7

_FLOATS: dict[Rest, np.dtype[np.generic]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}

_COARSEST = 1 + 1 / 16
"""A scale may grow by this factor when it is rounded: 8-bit steps are 6 % coarser then, where
those of a tensor differ by more among calibration methods."""


def power_of_two(values: Doubles) -> Doubles:
    """Return the least powers of two that are not below ``values``, 1 for 0."""
    fraction, exponent = np.frexp(values)
    above = np.ldexp(1.0, exponent - (fraction == 0.5))  # noqa: PLR2004  an exact power
    return np.where(values > 0, above, 1.0)


def rounded_up(scale: Doubles, rest: Rest) -> npt.NDArray[np.float32]:
    """Return ``scale`` as numbers that ``rest`` has too, none of them smaller than it was.

    Where no such number is close (FP16 ends at 2 ** -24 and 65504), it stays a float32, which
    tells that the pair must stay in FP32 too (:func:`is_exact`).
    """
    single = scale.astype(np.float32)
    low = _FLOATS[rest]
    with np.errstate(over="ignore"):
        nearest = single.astype(low)
    step = np.asarray(np.nextafter(nearest, low.type(np.inf)))
    up = np.where(nearest.astype(np.float32) < single, step, nearest).astype(np.float32)
    close = np.isfinite(up) & (up <= single * _COARSEST)
    return np.where(close, up, single).astype(np.float32)


def is_exact(scale: npt.NDArray[np.float32], rest: Rest) -> bool:
    """Tell whether ``rest`` has every one of these numbers."""
    with np.errstate(over="ignore"):
        back = scale.astype(_FLOATS[rest]).astype(np.float32)
    return bool((back == scale).all())
