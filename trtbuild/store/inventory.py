"""What is in a store, read in one pass: every record with its last use, every blob.

For the collection, which must know all references before it removes anything. Records are
decoded without the checks that a reader makes: what is damaged is for ``cache verify``.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from os import scandir
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trtbuild.engine import Value
from trtbuild.errors import StoreError
from trtbuild.store.publish import explained
from trtbuild.store.record import is_digest, is_newer
from trtbuild.store.versions import key_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import DirEntry

    from trtbuild.store.local import Store
    from trtbuild.store.pins import Pin

_DIGEST = re.compile(rb"[0-9a-f]{64}")


class File(Value, frozen=True, kw_only=True):
    """A published file; ``changed_ns`` is its time of change.

    Folder and name stay apart: a Path for each of 100,000 files would take a second.
    """

    folder: Path
    name: str
    size_bytes: int
    changed_ns: int

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.folder / self.name


@dataclass(kw_only=True)
class Entry:
    """A record. ``used_ns`` is its last use, or that of what was answered with it.

    ``blobs`` are digests. ``serves`` are digests of what it tells about: of an engine's record
    its own bytes, of a report the engines that it names, of a graph's record its content.
    ``unit`` is the digest of the bytes that engines have and that their plan record finds them
    by: those are used, and go, together.
    """

    file: File
    kind: str
    key: str
    used_ns: int
    blobs: tuple[str, ...] = ()
    serves: frozenset[str] = frozenset()
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """All records by kind and the name of their file, and all blobs by digest."""

    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    blobs: dict[str, File] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """The bytes of all records and blobs."""
        records = sum(entry.file.size_bytes for entry in self.entries.values())
        return records + sum(file.size_bytes for file in self.blobs.values())

    def units(self) -> dict[str, list[Entry]]:
        """Return the engines and plan records of the same bytes together, plans first."""
        units: dict[str, list[Entry]] = {}
        for entry in self.entries.values():
            if entry.unit:
                units.setdefault(entry.unit, []).append(entry)
        for unit in units.values():
            unit.sort(key=lambda entry: entry.kind != "plan")
        return units

    def kept_by(self, pin: Pin) -> Iterator[Entry]:
        """Yield the records that ``pin`` keeps."""
        own = {("engine", pin.engine_key), ("plan", pin.sha256)}
        for entry in self.entries.values():
            of_network = entry.kind != "engine" and pin.network_sha256 in entry.serves
            if (entry.kind, entry.key) in own or of_network or pin.sha256 in entry.serves:
                yield entry


class _Envelope(msgspec.Struct, frozen=True, rename={"payload_type": "payloadType"}):
    payload: bytes
    payload_type: str


class _Blob(msgspec.Struct, frozen=True):
    sha256: str


class _Record(msgspec.Struct, frozen=True):
    blobs: tuple[_Blob, ...]
    preimage: msgspec.Raw
    value: msgspec.Raw


class _Graph(msgspec.Struct, frozen=True):
    sha256: str = ""


class _Named(msgspec.Struct, frozen=True):
    key: str = ""


class _Answer(msgspec.Struct, frozen=True):
    stages: tuple[_Named, ...] = ()
    engines: tuple[_Named, ...] = ()


class _Link(msgspec.Struct, frozen=True):
    answer: _Answer | None = None


def take(store: Store) -> Inventory:
    """Return what is in the store now.

    What a remembered run was answered with counts as used when the run was: a daily full hit
    reads the engines only, and must not let the ranges behind them grow old.

    Raises:
        StoreError: it cannot be read, or holds records of a later version, whose references
            are unknown.
    """
    used: dict[str, int] = {}
    with explained(store.root):
        found = Inventory(blobs=blobs(store))
        for file in _files(store.top / "ac"):
            entry = _entry(store, file, used)
            found.entries[entry.kind, file.name] = entry
    for entry in found.entries.values():
        entry.used_ns = max(entry.used_ns, used.get(entry.key, 0))
    _pair_plans(found)
    return found


def blobs(store: Store) -> dict[str, File]:
    """Return all blobs of ``store`` by digest; their content is not read."""
    return {file.name: file for file in _files(store.top / "cas") if is_digest(file.name)}


def _files(top: Path) -> Iterator[File]:
    """Yield the regular files two folders below that are named as records and blobs are."""
    for kind in _folders(top):
        for shard in _folders(kind):
            with scandir(shard) as entries:
                yield from (file for each in entries if (file := _file(shard, each)))


def _folders(folder: Path) -> list[Path]:
    with scandir(folder) as entries:
        return [folder / each.name for each in entries if each.is_dir(follow_symlinks=False)]


def _file(folder: Path, entry: DirEntry[str]) -> File | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not key_of(entry.name) or not stat.S_ISREG(status.st_mode):
        return None
    return File(
        folder=folder,
        name=entry.name,
        size_bytes=status.st_size,
        changed_ns=status.st_mtime_ns,
    )


def _entry(store: Store, file: File, used: dict[str, int]) -> Entry:
    kind = file.folder.parent.name
    entry = Entry(file=file, kind=kind, key=key_of(file.name), used_ns=file.changed_ns)
    entry.unit = entry.key if kind == "plan" else ""
    try:
        with open(f"{file.folder}/{file.name}", "rb", buffering=0) as opened:  # noqa: PTH123  see File
            data = opened.read()
        envelope = msgspec.json.decode(data, type=_Envelope)
        _refuse_newer(store, file.path, envelope.payload_type)
        record = msgspec.json.decode(envelope.payload, type=_Record)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return entry
    entry.blobs = tuple(blob.sha256 for blob in record.blobs)
    entry.serves = _serves(kind, record)
    if kind == "engine" and entry.blobs:
        entry.unit = entry.blobs[0]
    if kind == "memo":
        for key in _answered_with(record):
            used[key] = max(used.get(key, 0), file.changed_ns)
    return entry


def _refuse_newer(store: Store, path: Path, payload_type: str) -> None:
    if is_newer(payload_type):
        message = (
            f"store {store.root}: a later version of trtbuild wrote {path}, so what it needs "
            "is unknown and nothing may be removed. Collect with that version; 'trtbuild cache "
            "verify' says whether the record is merely damaged"
        )
        raise StoreError(message)


def _serves(kind: str, record: _Record) -> frozenset[str]:
    if kind in ("memo", "plan"):
        return frozenset()
    if kind == "engine":
        return frozenset(blob.sha256 for blob in record.blobs)
    if kind == "report":
        return frozenset(each.decode() for each in _DIGEST.findall(bytes(record.preimage)))
    try:
        return frozenset({msgspec.json.decode(record.value, type=_Graph).sha256})
    except msgspec.MsgspecError:
        return frozenset()


def _answered_with(record: _Record) -> tuple[str, ...]:
    """Return the keys of the stages and engines in the answer of a memo's last link."""
    try:
        answer = msgspec.json.decode(record.value, type=_Link).answer
    except msgspec.MsgspecError:
        return ()
    if answer is None:
        return ()
    return tuple(each.key for each in (*answer.stages, *answer.engines))


def _pair_plans(found: Inventory) -> None:
    """Make what belongs to one engine's bytes as young as the youngest of it."""
    for unit in found.units().values():
        used_ns = max(entry.used_ns for entry in unit)
        for entry in unit:
            entry.used_ns = used_ns
