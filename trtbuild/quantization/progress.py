"""How far a calibration came, as bytes that survive a kill and prove themselves whole."""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from trtbuild.quantization.ranges import arrays_of, ranges_in

if TYPE_CHECKING:
    from trtbuild.quantization.ranges import Ranges

_TAG = b"trtbuild/calibration-progress/v1\n"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Chunks that were counted, and what they hold."""

    chunks: int = 0
    ranges: Ranges = field(default_factory=dict)


def save_progress(progress: Progress) -> bytes:
    """Return ``progress`` as bytes that begin with their own digest."""
    file = io.BytesIO()
    arrays = arrays_of(progress.ranges)
    np.savez(
        file,
        chunks=np.array(progress.chunks),
        names=arrays["names"],
        extremes=arrays["extremes"],
        exponents=arrays["exponents"],
        counts=arrays["counts"],
    )
    data = file.getvalue()
    return hashlib.sha256(_TAG + data).digest() + data


def load_progress(data: bytes | None) -> Progress:
    """Return the progress in ``data``; none where it is damaged or of another version."""
    if data is None:
        return Progress()
    length = hashlib.sha256().digest_size
    checksum, content = data[:length], data[length:]
    if hashlib.sha256(_TAG + content).digest() != checksum:
        return Progress()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return Progress(chunks=int(file["chunks"]), ranges=ranges_in(file))
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error):
        return Progress()
