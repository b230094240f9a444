"""Calibration caches of TensorRT 4 to 10: what ``IInt8Calibrator`` wrote, read and written.

A cache is text: ``TRT-<version>-<algorithm>``, then one ``tensor: 3c010204`` per line. The
eight digits are the big-endian bytes of a float32, the scale: the largest magnitude that the
tensor keeps, divided by 127. TensorRT 11 reads none, since it has no calibrators any more.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

import numpy as np

from trtbuild.canonical import digest
from trtbuild.engine import Value
from trtbuild.errors import DataError, UsageError
from trtbuild.quantization.thresholds import INT8_STEPS

if TYPE_CHECKING:
    from pathlib import Path

ALGORITHMS = (
    "EntropyCalibration2",
    "EntropyCalibration",
    "MinMaxCalibration",
    "LegacyCalibration",
)
"""What a header can name, one per class of calibrators; the first is what trtexec reads."""

DEFAULT_VERSION = "8.6.1"
"""The last TensorRT 8; TensorRT 10 refuses a cache whose header names another version."""

_HEADER = re.compile(r"TRT-(?P<version>\w+)-(?P<algorithm>\w+)")
_LINE = re.compile(r"(?P<name>.*\S)\s*:\s*(?P<digits>[0-9A-Fa-f]+)")
_DECIMAL = re.compile(r".+[:\s]\s*[-+]?\d*\.\d+(e[-+]?\d+)?")
_DIGITS = 8
_SHOWN = 60
"""Characters of a wrong line that a message quotes."""


class TrtCache(Value, frozen=True, kw_only=True):
    """What a cache says: ``scales`` are float32 numbers by tensor name, in the file's order.

    ``version`` is as the header spells it: ``8601`` is TensorRT 8.6.1, ``101300`` is 10.13.0.
    A scale of 0 belongs to a tensor that was zero in all calibration data.
    """

    version: str
    algorithm: str
    scales: dict[str, float]

    @property
    def header(self) -> str:
        """The first line, ``TRT-8601-EntropyCalibration2``."""
        return f"TRT-{self.version}-{self.algorithm}"

    @property
    def sha256(self) -> str:
        """The digest of the content, independent of order, line ends and case."""
        plain = {name: _digits(scale) for name, scale in self.scales.items()}
        return digest("trt-cache/v1", [self.header, plain])


def read_cache(path: Path) -> TrtCache:
    """Return the calibration cache in a file.

    Raises:
        DataError: the file cannot be read, is no cache, is cut short, or gives one tensor two
            scales; the message names the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(
            f"{path}: cannot read the calibration cache: {error.strerror}. Give its path"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no TensorRT calibration cache: it is no text") from error
    first, *rest = text.splitlines() or [""]
    header = _HEADER.fullmatch(first.strip())
    if header is None or header["algorithm"] not in ALGORITHMS:
        raise DataError(
            f"{path}: no TensorRT calibration cache: its first line is {_quoted(first)}, "
            f"expected TRT-8601-{ALGORITHMS[0]}, or another version or one of "
            f"{', '.join(ALGORITHMS[1:])}"
        )
    scales: dict[str, float] = {}
    for number, line in enumerate(rest, start=2):
        if line.strip():
            name, scale = _entry(path, number, line)
            if scales.setdefault(name, scale) != scale:
                raise DataError(
                    f"{path}, line {number}: {name!r} has the scale {scale!r} here and "
                    f"{scales[name]!r} above. Calibrate again, or remove the wrong line"
                )
    if not scales:
        raise DataError(f"{path}: the calibration cache has a header and no tensors")
    return TrtCache(version=header["version"], algorithm=header["algorithm"], scales=scales)


def write_cache(cache: TrtCache, path: Path) -> None:
    """Write ``cache`` as TensorRT does: the digits lower-case, each line ended by a newline.

    Reading it again gives the same scales to the last bit.
    """
    lines = [cache.header, *(f"{n}: {_digits(scale)}" for n, scale in cache.scales.items())]
    path.write_bytes(("\n".join(lines) + "\n").encode())


def scale_of(amax: float) -> float:
    """Return the scale that a cache holds for the largest magnitude ``amax``: a float32."""
    return float(np.float32(amax / INT8_STEPS))


def amax_of(scale: float) -> float:
    """Return the largest magnitude that ``scale`` keeps; dividing it by 127 gives it back."""
    return scale * INT8_STEPS


def header_version(release: str) -> str:
    """Return the number by which a header names a release: 8601 for 8.6.1, 101300 for 10.13.0.

    TensorRT's ``NV_TENSORRT_VERSION`` counts majors in thousands up to release 8 and in ten
    thousands from 10 on.

    Raises:
        UsageError: it is no release that had calibrators.
    """
    found = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", release)
    major, minor, patch = (int(part) for part in found.groups()) if found else (0, 0, 0)
    if not 4 <= major <= 10:  # noqa: PLR2004  the releases with calibrators
        raise UsageError(
            f"TensorRT {release}: expected a release that has calibrators, from 4.0.0 to "
            f"10.x.y, written as {DEFAULT_VERSION}"
        )
    if major < 10:  # noqa: PLR2004  from 10 on there are two digits for each
        return str(1000 * major + 100 * minor + patch)
    return str(10000 * major + 100 * minor + patch)


def _entry(path: Path, number: int, line: str) -> tuple[str, float]:
    """Return name and scale of one line. The name may hold colons, blanks and brackets."""
    found = _LINE.fullmatch(line.strip())
    digits = found["digits"] if found else ""
    if found is None or (len(digits) != _DIGITS and digits.strip("0")):
        reason = (
            "its scale is a decimal number; only TensorRT's own hexadecimal form is read"
            if _DECIMAL.fullmatch(line.strip())
            else "the file may be cut short or edited"
        )
        raise DataError(
            f"{path}, line {number}: expected 'tensor: ' and {_DIGITS} hexadecimal digits, got "
            f"{_quoted(line)}: {reason}. Calibrate again, or remove the line"
        )
    (scale,) = struct.unpack(">f", bytes.fromhex(digits.zfill(_DIGITS)))
    if not 0 <= scale < float("inf"):
        raise DataError(
            f"{path}, line {number}: {found['name']!r} has the scale {scale}, expected a "
            f"finite number from 0 up. Remove the line, or calibrate on data without NaN"
        )
    return found["name"], float(scale)


def _digits(scale: float) -> str:
    return struct.pack(">f", scale).hex()


def _quoted(line: str) -> str:
    return repr(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}...")
