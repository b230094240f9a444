"""The memory that this process has used."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

_STATUS = Path("/proc/self/status")

_MMAP_THRESHOLD = -3
"""``M_MMAP_THRESHOLD`` of glibc's malloc.h."""


def peak_rss_bytes() -> int:
    """Return the high-water mark of this process's resident memory, 0 where it is unknown.

    From ``VmHWM``: ``ru_maxrss`` is inherited from a large parent.
    """
    return _status("VmHWM:")


def rss_bytes() -> int:
    """Return this process's resident memory now, 0 where it is unknown."""
    return _status("VmRSS:")


def return_large_blocks() -> None:
    """Let the C library give every freed block of 128 KiB or more back to the system at once.

    Left alone, glibc raises that limit to the size of what was freed, up to 32 MiB, and keeps
    holes between blocks below it (mallopt(3), ``M_MMAP_THRESHOLD``). Others have no such call.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 128 << 10)


def _status(field: str) -> int:
    if not _STATUS.exists():
        return 0
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0
