"""What calibration measured: one histogram per tensor, from which every method follows."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from trtbuild.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt


BINS = 2048
"""Bins of every histogram, over the magnitude from 0 to a power of two."""


@dataclass(frozen=True, kw_only=True)
class TensorStatistics:
    """Exact extremes of one tensor and the histogram of its magnitude.

    Bin ``i`` of ``counts`` (int64, [2048]) holds the values with ``i * width <= |x| <
    (i + 1) * width``, where ``width`` is ``2 ** exponent / 2048`` and ``2 ** exponent`` is the
    smallest power of two above every magnitude. So the histogram depends on the values only,
    not on how they were cut into batches or in which order they came.
    """

    minimum: float
    maximum: float
    exponent: int
    counts: npt.NDArray[np.int64]

    @property
    def amax(self) -> float:
        """The largest magnitude."""
        return max(abs(self.minimum), abs(self.maximum))

    @property
    def width(self) -> float:
        """The width of one bin; exact, since it is a power of two."""
        return float(np.ldexp(1.0, self.exponent) / BINS)


Ranges = dict[str, TensorStatistics]
"""Statistics by tensor name."""


def ranges_digest(ranges: Mapping[str, TensorStatistics]) -> str:
    """Return the sha256 (64 hex digits) of the content of ``ranges``, independent of order."""
    total = hashlib.sha256(b"trtbuild/ranges/v1\n")
    for name in sorted(ranges):
        item = ranges[name]
        head = f"{name}\0{item.minimum.hex()}\0{item.maximum.hex()}\0{item.exponent}\0"
        total.update(head.encode())
        total.update(item.counts.astype("<i8").tobytes())
    return total.hexdigest()


def arrays_of(ranges: Mapping[str, TensorStatistics]) -> dict[str, npt.NDArray[Any]]:
    """Return ``ranges`` as the arrays of an ``.npz`` file, sorted by name."""
    names = sorted(ranges)
    extremes = [[ranges[name].minimum, ranges[name].maximum] for name in names]
    counts = [ranges[name].counts for name in names]
    return {
        "names": np.array(names, dtype=np.str_),
        "extremes": np.array(extremes, dtype=np.float64).reshape(len(names), 2),
        "exponents": np.array([ranges[name].exponent for name in names], dtype=np.int64),
        "counts": np.array(counts, dtype=np.int64).reshape(len(names), BINS),
    }


def ranges_in(file: Mapping[str, npt.NDArray[Any]]) -> Ranges:
    """Return the ranges in arrays that :func:`arrays_of` made.

    Raises:
        KeyError: an array is missing.
        ValueError: the arrays do not fit each other.
    """
    names, extremes = file["names"], file["extremes"]
    exponents, counts = file["exponents"], file["counts"]
    shapes = [array.shape for array in (names, extremes, exponents, counts)]
    number = names.size
    if shapes != [(number,), (number, 2), (number,), (number, BINS)]:
        raise ValueError(f"arrays of ranges have the shapes {shapes}")
    return {
        str(name): TensorStatistics(
            minimum=float(extremes[i, 0]),
            maximum=float(extremes[i, 1]),
            exponent=int(exponents[i]),
            counts=counts[i],
        )
        for i, name in enumerate(names)
    }


def save_ranges(ranges: Mapping[str, TensorStatistics], path: Path) -> None:
    """Write ``ranges`` as a compressed ``.npz`` file."""
    arrays = arrays_of(ranges)
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            names=arrays["names"],
            extremes=arrays["extremes"],
            exponents=arrays["exponents"],
            counts=arrays["counts"],
        )


def load_ranges(path: Path) -> Ranges:
    """Return the ranges in a file that :func:`save_ranges` wrote.

    Raises:
        StoreError: the file is no such file.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return ranges_in(file)
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise StoreError(f"{path}: not a file of ranges: {error}. Calibrate again") from error
