"""Canonical JSON and the digests over it: the identity of every value in trtbuild."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

_CHUNK_BYTES = 1 << 20


def encode(value: object) -> bytes:
    """Return the canonical JSON of a plain value: sorted keys, no white space, UTF-8."""
    return msgspec.json.encode(value, order="sorted")


def digest(tag: str, value: object) -> str:
    """Return the sha256 (64 hex digits) of ``value`` under a tag such as ``engine-key/v1``.

    The tag keeps two kinds of values with equal fields apart. Floats must not occur in
    ``value`` unless they came from decoding text: their shortest form is what is hashed.
    """
    return hashlib.sha256(f"trtbuild/{tag}\n".encode() + encode(value)).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the sha256 (64 hex digits) of the bytes of a file, read in 1 MiB pieces."""
    with path.open("rb") as file:
        return sha256_open(file)


def sha256_open(file: BinaryIO) -> str:
    """Return the sha256 (64 hex digits) of the rest of an open file, read in 1 MiB pieces."""
    total = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        total.update(chunk)
    return total.hexdigest()
