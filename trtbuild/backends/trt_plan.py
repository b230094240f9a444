"""The header of a TensorRT or TensorRT-RTX engine: enough to tell one from anything else.

Its layout is not documented: that of RTX was read from engines of version 1.7.1, that of
TensorRT is as users report it (NVIDIA/TensorRT issue 3073, whose offset of the version Autoware
reads too, and the mark by which pytorch/TensorRT knows a plan). It is only a cheap extra check;
the identity of an engine is in its manifest.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Literal

from trtbuild.engine import Value

if TYPE_CHECKING:
    from trtbuild.engine import Target

_RTX, _TENSORRT = b"vtrt", b"ftrt"
_FIRST_MAJOR = 5
"""Of TensorRT; a smaller number stands where older versions wrote no version."""

_COMPARED = 3

_HEADER = struct.Struct("<4sIIIQ4B4sQ16xQ")
_ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")


HEADER_BYTES = _HEADER.size


class Header(Value, frozen=True, kw_only=True, rename={"product": "library"}):
    """What the header says: the library and its version, the engine's architectures and sizes.

    ``bytes`` is the length of the whole engine. ``weights_bytes`` is 0 also for engines that
    stream their weights. TensorRT tells no architectures and no weights in it, and ``version``
    is empty for those of its versions that did not tell theirs. ``product`` is ``library`` in
    JSON.
    """

    product: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    archs: tuple[str, ...]
    bytes: int
    weights_bytes: int | None


def is_plan(start: bytes) -> bool:
    """Tell whether a file that begins with ``start`` claims to be an engine."""
    return start[:4] in {_RTX, _TENSORRT}


def read_header(plan: bytes) -> Header | None:
    """Return the header of an engine, of which ``plan`` is at least the first 64 bytes.

    ``None`` where they do not start as an engine of TensorRT or TensorRT-RTX does.
    """
    if len(plan) < HEADER_BYTES:
        return None
    magic, _, _, _, length, *version, again, mask, weights = _HEADER.unpack_from(plan)
    told = ".".join(map(str, version))
    if magic == _TENSORRT:
        told = told if version[0] >= _FIRST_MAJOR else ""
        return Header(
            product="tensorrt", version=told, archs=(), bytes=length, weights_bytes=None
        )
    if magic != _RTX or again != _RTX:
        return None
    return Header(
        product="tensorrt-rtx",
        version=told,
        archs=tuple(name for bit, name in enumerate(_ARCHS) if mask >> bit & 1),
        bytes=length,
        weights_bytes=weights,
    )


def problem(plan: bytes, target: Target, version: str = "") -> str:
    """Return what is wrong with an engine that should be for ``target``, or an empty string.

    ``version`` is the library's that built it, of which the first three numbers count; empty
    where that is not to be compared. A header of TensorRT proper is looked at only where it is
    one that we know, which tells its version: its own runtime judges the others.
    """
    header = read_header(plan)
    if target.backend == "tensorrt-rtx":
        return _rtx_problem(plan, header, target.arch) or _version_problem(header, version)
    if len(plan) < HEADER_BYTES:
        return f"it has {len(plan)} bytes"
    if plan.startswith(_RTX):
        return "it starts as an engine of TensorRT-RTX does"
    if header is None or not header.version or not version:
        return ""
    return _length_problem(plan, header) or _version_problem(header, version)


def _rtx_problem(plan: bytes, header: Header | None, arch: str) -> str:
    if len(plan) < HEADER_BYTES:
        return f"it has {len(plan)} bytes, fewer than a header"
    if header is None or header.product != "tensorrt-rtx":
        return "it does not start as a TensorRT-RTX engine does"
    if header.archs != (arch,):
        named = ", ".join(header.archs) or "no architecture"
        return _length_problem(plan, header) or f"its header names {named}, expected {arch}"
    return _length_problem(plan, header)


def _length_problem(plan: bytes, header: Header) -> str:
    if header.bytes == len(plan):
        return ""
    return f"its header says {header.bytes} bytes, it has {len(plan)}"


def _version_problem(header: Header | None, version: str) -> str:
    """Compare as many numbers as packages always tell; the fourth is a build's."""
    wanted = re.findall(r"\d+", version)[:_COMPARED]
    if header is None or len(wanted) < _COMPARED:
        return ""
    told = header.version.split(".")[:_COMPARED]
    if [int(each) for each in told] == [int(each) for each in wanted]:
        return ""
    return f"its header says version {header.version}, its manifest {version}"
