"""Pins: names for engines that the collection must keep.

    v1/refs/<namespace>/<name>     {"schema": 1, "engine_key": ..., "sha256": ..., ...}

A pin keeps what it takes to serve an engine, to explain it and to build it for the next
library: its record and bytes, the record that finds it by its digest, what was measured of it,
and the network that it was built from (:mod:`trtbuild.store.inventory` says which records).
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import msgspec

from trtbuild.canonical import encode
from trtbuild.engine import Manifest, Value
from trtbuild.errors import StoreError, UsageError
from trtbuild.store.publish import draft, explained, make_folders, sync_folders
from trtbuild.store.reader import read_file
from trtbuild.store.record import check_digest

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.store.local import Store
    from trtbuild.store.record import Record

NAMESPACE = "pins"
"""Where pins lie whose name has no namespace."""

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SHOWN_DIGITS = 12
_LIMIT_BYTES = 1 << 16


class Pin(Value, frozen=True, kw_only=True):
    """The file of a pin; ``created`` is UTC, ``2026-01-31T12:00:00Z``."""

    engine_key: str
    sha256: str
    network_sha256: str
    created: str
    schema: int = 1

    def __post_init__(self) -> None:
        """Refuse what a path must not be made of, and foreign schemas."""
        for text in (self.engine_key, self.sha256, self.network_sha256):
            check_digest(text)
        if self.schema != 1:
            message = f"pin schema {self.schema}: this version reads 1"
            raise ValueError(message)


def pin(store: Store, engine: Record, name: str) -> str:
    """Pin an engine under ``name`` (``NAME`` or ``NAMESPACE/NAME``); return the full name.

    Without a name it is the engine's digest. A name that is taken moves to this engine.

    Raises:
        UsageError: the name is none.
        StoreError: the store cannot be written.
    """
    manifest = engine.read(Manifest)
    full = _full_name(name or manifest.sha256[:_SHOWN_DIGITS])
    value = Pin(
        engine_key=engine.key,
        sha256=manifest.sha256,
        network_sha256=manifest.preimage.network_sha256,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    final = store.top / "refs" / full
    with explained(store.root):
        make_folders(final.parent, store.top)
        with draft(store.top / "tmp", [encode(value)]) as written:
            written.path.replace(final)
        sync_folders(final.parent, store.top)
    return full


def unpin(store: Store, text: str) -> tuple[str, ...]:
    """Remove the pin of this name, or all pins of the engine whose digest begins so.

    Raises:
        UsageError: there is no such pin.
        StoreError: the store cannot be written.
    """
    known, damaged = read_pins(store)
    names = (text, f"{NAMESPACE}/{text}")
    found = [name for name in (*known, *damaged) if name in names] or [
        name
        for name, each in known.items()
        if len(text) >= _SHOWN_DIGITS // 2 and each.sha256.startswith(text)
    ]
    if not found:
        message = (
            f"{text!r} is no pin and no pinned engine of the store {store.root}: "
            "'trtbuild cache pin' lists the pins"
        )
        raise UsageError(message)
    for name in found:
        path = store.top / "refs" / name
        with explained(store.root):
            path.unlink(missing_ok=True)
            sync_folders(path.parent, store.top)
    return tuple(found)


def pins(store: Store) -> dict[str, Pin]:
    """Return all pins by full name, sorted.

    Raises:
        StoreError: one cannot be read. What it should keep is unknown, so nothing may be
            collected.
    """
    found, damaged = read_pins(store)
    if damaged:
        message = "; ".join(damaged.values())
        raise StoreError(message)
    return found


def read_pins(store: Store) -> tuple[dict[str, Pin], dict[str, str]]:
    """Return all pins by full name, sorted, and why others cannot be read, by theirs.

    Raises:
        StoreError: the store cannot be read.
    """
    folder = store.top / "refs"
    found: dict[str, Pin] = {}
    damaged: dict[str, str] = {}
    with explained(store.root):
        paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
        for path in paths:
            name = str(path.relative_to(folder))
            try:
                found[name] = _read(path)
            except StoreError as error:
                damaged[name] = str(error)
    return found, damaged


def _read(path: Path) -> Pin:
    content = read_file(path, _LIMIT_BYTES)
    try:
        if content is None or content.fault:
            reason = content.fault if content else "it went away"
        else:
            return msgspec.json.decode(content.data, type=Pin)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        reason = str(error)
    message = (
        f"store {path}: not a pin that this version can read ({reason}). Upgrade trtbuild if a "
        "newer one wrote it; otherwise run 'trtbuild cache verify --repair' and pin the engine "
        "again"
    )
    raise StoreError(message)


def _full_name(name: str) -> str:
    namespace, slash, rest = name.partition("/")
    parts = (namespace, rest) if slash else (NAMESPACE, name)
    if not all(_PART.fullmatch(part) for part in parts):
        message = (
            f"--name {name!r}: expected NAME or NAMESPACE/NAME, each of 1 to 128 of A-Z a-z "
            "0-9 _ . -, the first no '.' or '-'"
        )
        raise UsageError(message)
    return "/".join(parts)
