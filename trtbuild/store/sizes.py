"""Sizes in the words of people."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB")
_STEP = 1000


def shown_size(size_bytes: float) -> str:
    """Return a size in the unit that fits: ``7 B``, ``1.5 kB``, ``35.0 GB``.

    Units are powers of 1000, as in ``--high 50GB``.
    """
    size, unit = float(size_bytes), 0
    while round(size, 1) >= _STEP and unit < len(_UNITS) - 1:
        size /= _STEP
        unit += 1
    if unit == 0:
        return f"{size:.0f} B"
    return f"{size:.1f} {_UNITS[unit]}"
