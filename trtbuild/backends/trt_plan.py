"""The header of a TensorRT-RTX engine: enough to tell a whole one from anything else.

Its layout is not documented; it was read from engines of version 1.7.1 and is only a cheap
extra check. The identity of an engine is in its manifest.
"""

from __future__ import annotations

import struct

_MAGIC = b"vtrt"
_HEADER = struct.Struct("<4sIIIQ4B4sQ")
_ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")


def problem(plan: bytes, arch: str) -> str:
    """Return what is wrong with an engine that should be for ``arch``, or an empty string."""
    if len(plan) < _HEADER.size:
        return f"it has {len(plan)} bytes, fewer than a header"
    fields = _HEADER.unpack_from(plan)
    magic, length, again, mask = fields[0], fields[4], fields[9], fields[10]
    if magic != _MAGIC or again != _MAGIC:
        return "it does not start as a TensorRT-RTX engine does"
    if length != len(plan):
        return f"its header says {length} bytes, it has {len(plan)}"
    archs = [name for bit, name in enumerate(_ARCHS) if mask >> bit & 1]
    if archs != [arch]:
        return f"its header names {', '.join(archs) or 'no architecture'}, expected {arch}"
    return ""
