"""The memory that this process has used."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_rss_bytes() -> int:
    """Return the high-water mark of this process's resident memory, 0 where it is unknown.

    From ``VmHWM``: ``ru_maxrss`` is inherited from a large parent.
    """
    return _status("VmHWM:")


def rss_bytes() -> int:
    """Return this process's resident memory now, 0 where it is unknown."""
    return _status("VmRSS:")


def _status(field: str) -> int:
    if not _STATUS.exists():
        return 0
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0
