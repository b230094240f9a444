"""The header of a TensorRT-RTX engine: enough to tell a whole one from anything else.

Its layout is not documented; it was read from engines of version 1.7.1 and is only a cheap
extra check. The identity of an engine is in its manifest.
"""

from __future__ import annotations

import struct

from trtbuild.engine import Value

_MAGIC = b"vtrt"
_HEADER = struct.Struct("<4sIIIQ4B4sQ16xQ")
_ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")


HEADER_BYTES = _HEADER.size


class Header(Value, frozen=True, kw_only=True):
    """What the header says: the library's version, the engine's architectures and sizes.

    ``bytes`` is the length of the whole file. ``weights_bytes`` is 0 also for engines that
    stream their weights.
    """

    version: str
    archs: tuple[str, ...]
    bytes: int
    weights_bytes: int


def read_header(plan: bytes) -> Header | None:
    """Return the header of an engine, of which ``plan`` is at least the first 64 bytes.

    ``None`` where they do not start as a TensorRT-RTX engine does.
    """
    if len(plan) < HEADER_BYTES:
        return None
    magic, _, _, _, length, *version, again, mask, weights = _HEADER.unpack_from(plan)
    if magic != _MAGIC or again != _MAGIC:
        return None
    return Header(
        version=".".join(map(str, version)),
        archs=tuple(name for bit, name in enumerate(_ARCHS) if mask >> bit & 1),
        bytes=length,
        weights_bytes=weights,
    )


def problem(plan: bytes, arch: str) -> str:
    """Return what is wrong with an engine that should be for ``arch``, or an empty string."""
    if len(plan) < HEADER_BYTES:
        return f"it has {len(plan)} bytes, fewer than a header"
    header = read_header(plan)
    if header is None:
        return "it does not start as a TensorRT-RTX engine does"
    if header.bytes != len(plan):
        return f"its header says {header.bytes} bytes, it has {len(plan)}"
    if header.archs != (arch,):
        named = ", ".join(header.archs) or "no architecture"
        return f"its header names {named}, expected {arch}"
    return ""
