"""The local store: content-addressed blobs, and records that say what was made for a key.

    STORE                          version of the store
    v1/cas/sha256/ab/<digest>      blobs, read-only
    v1/ac/<kind>/ab/<key>          records (see :mod:`trtbuild.store.versions`)
    v1/lease/<kind>.<key>          who is making what (see :mod:`trtbuild.store.lease`)
    v1/tmp/                        unpublished files
    v1/quarantine/                 what failed verification; never served
    v1/refs/<namespace>/<name>     what must be kept (see :mod:`trtbuild.store.pins`)
    v1/counters/                   what the store was worth (:mod:`trtbuild.store.counters`)
    v1/att/<engine>/<digest>       signed statements (see :mod:`trtbuild.store.statements`)
    v1/unsent/                     what a remote tier lacks (:mod:`trtbuild.store.unsent`)

The folder tree is the truth; there is no index that could disagree with it. The time of change
of a record's file is its last use, to the hour.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trtbuild.engine import Value
from trtbuild.errors import StoreError
from trtbuild.store import counters
from trtbuild.store.guard import mark_used, mark_wanted, publishing
from trtbuild.store.location import is_offline, locate, prepare, require_store
from trtbuild.store.publish import (
    draft,
    explained,
    link_new,
    require_room,
    set_aside,
    sync_folders,
)
from trtbuild.store.reader import BlobLostError, digest_file, file_fault, read_file
from trtbuild.store.record import (
    Blob,
    NewerRecordError,
    check_digest,
    check_kind,
    encode_record,
)
from trtbuild.store.temporary import new_name, remove_orphans
from trtbuild.store.versions import key_of, read_record, record_paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from trtbuild.store.publish import Draft
    from trtbuild.store.reader import Content
    from trtbuild.store.record import Record

_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 5
_ANY_SIZE = 1 << 62
_HEX = re.compile(r"[0-9a-f]+")
_SHARD_DIGITS = 2
_MAKE_ANEW = "Build it again: 'trtbuild engine' with the same model or recipe makes it anew"


class Incident(Value, frozen=True, kw_only=True):
    """Something that should not happen in a store, which it got over: for the user to read."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Store:
    """A store in a folder; :meth:`open` makes one. Safe to share by threads and processes.

    ``incidents`` collects what had to be set aside, each once. ``uri`` is what opened it, so
    that a child process can open the same, remote tiers included.
    """

    root: Path
    uri: str = ""
    incidents: list[Incident] = field(default_factory=list)

    @classmethod
    def open(cls, uri: str) -> Store:
        """Return the store at ``uri``: a folder, and remote tiers after it, joined by commas.

        The empty string is ``TRTBUILD_STORE``, and without it the user's cache folder. Makes
        the folder where it is missing, and removes what dead processes left in it. No tier is
        contacted yet; with ``TRTBUILD_OFFLINE`` none that needs the network ever is.

        Raises:
            StoreError: the folder cannot be used or must not be trusted.
            UsageError: the URI of a tier is wrong.
        """
        place = locate(uri)
        prepare(place.root)
        store = cls(root=place.root, uri=place.uri)
        with explained(place.root):
            remove_orphans(store.top / "tmp")
        if place.remotes:
            from trtbuild.store.tiered import add_tiers

            return add_tiers(store, place.remotes, offline=is_offline())
        return store

    @classmethod
    def open_existing(cls, uri: str) -> Store:
        """Return the store at ``uri`` as :meth:`open` does, but make no folder of a typo.

        Raises:
            StoreError: there is none, or as :meth:`open`.
            UsageError: the URI of a tier is wrong.
        """
        require_store(uri)
        return cls.open(uri)

    @property
    def top(self) -> Path:
        """The folder of this version's layout."""
        return self.root / "v1"

    @property
    def here(self) -> Store:
        """The local store alone, without remote tiers."""
        return self

    # Blobs

    def path(self, sha256: str) -> Path:
        """Return where the blob is or would be; nothing is checked."""
        return self.top / "cas" / "sha256" / sha256[:_SHARD_DIGITS] / check_digest(sha256)

    def put_bytes(self, name: str, data: bytes) -> Blob:
        """Store ``data`` durably; ``name`` is what its record will call it."""
        return self._put_blob(name, [data], len(data))

    def put_file(self, name: str, path: Path) -> Blob:
        """Store a copy of the file at ``path`` durably; what was copied is what is hashed.

        Raises:
            OSError: ``path`` cannot be read.
            StoreError: the store cannot be written; nothing is visible of the attempt.
        """
        with path.open("rb") as source:
            size_bytes = os.fstat(source.fileno()).st_size
            chunks = iter(lambda: source.read(_CHUNK_BYTES), b"")
            return self._put_blob(name, chunks, size_bytes)

    def put_expected(self, blob: Blob, chunks: Iterable[bytes | bytearray]) -> str:
        """Store bytes from elsewhere durably if they are ``blob``; else return what they are.

        Raises:
            StoreError: the store cannot be written; nothing is visible of the attempt.
        """
        with explained(self.root):
            require_room(self.top, blob.bytes)
            with draft(self.top / "tmp", chunks) as written:
                if (written.sha256, written.size_bytes) != (blob.sha256, blob.bytes):
                    return (
                        f"it has {written.size_bytes} bytes with the digest {written.sha256}, "
                        f"expected were {blob.bytes} with {blob.sha256}"
                    )
                self._publish(written, blob)
        return ""

    def has(self, blob: Blob) -> bool:
        """Tell whether the blob is here by name and size; its bytes are not read."""
        with explained(self.root):
            content = file_fault(self.path(blob.sha256), blob.bytes)
        return content is not None and not content.fault

    def read(self, sha256: str, limit_bytes: int = _ANY_SIZE) -> bytes:
        """Return the blob's bytes, at most those of a record, hashed in this process's memory.

        Raises:
            BlobLostError: it is missing, or failed verification and was set aside; looking up
                its record again is a miss.
            StoreError: it cannot be read.
        """
        with explained(self.root):
            return self._verified(sha256, read_file(self.path(sha256), limit_bytes)).data

    def verified_path(self, sha256: str) -> Path:
        """Return the blob's path after hashing the file; raises as :meth:`read`.

        For tools that take only paths. A file can change after the check; :meth:`read` cannot.
        """
        with explained(self.root):
            self._verified(sha256, digest_file(self.path(sha256), _ANY_SIZE))
        return self.path(sha256)

    # Records

    def get(self, kind: str, key: str, shape: type[object] = object) -> Record | None:
        """Return the record of ``key``, or None: a miss.

        A record that is damaged is set aside and is a miss, and so is one that names a blob
        which is missing or has another size. One whose value does not have every field of
        ``shape`` (``object``: any value) is another version's: it stays, and is no answer.

        Raises:
            StoreError: the store cannot be read, or a newer version wrote this record; that
                is no miss.
        """
        with explained(self.root):
            found = self._load(kind, key, shape)
            if found is None or not self._has_blobs(found[0]):
                return None
            mark_used(found[1])
            return found[0]

    def put(self, record: Record, shape: type[object] = object) -> Record:
        """Store ``record`` durably if its key has none; return the one that is stored.

        The first writer wins: results of one key may differ in their bytes, and everybody must
        get the same. One whose value is not of ``shape`` does not count: ours stands beside it.

        Raises:
            StoreError: a blob that it names is not stored, or the store cannot be written.
        """
        data = encode_record(record)
        with explained(self.root), publishing(self.top):
            if not self._has_blobs(record):
                raise StoreError(
                    f"store {self.root}: {record.kind} record {record.key[:12]} names a blob "
                    "that is not in the store (any more). Run the command again"
                )
            for blob in record.blobs:
                mark_wanted(self.path(blob.sha256))
            require_room(self.top, len(data))
            with draft(self.top / "tmp", [data]) as written:
                for _ in range(_ATTEMPTS):
                    winner = self._load(record.kind, record.key, shape)
                    if winner and self._has_blobs(winner[0]):
                        return winner[0]
                    if winner:
                        self._set_aside(*winner[1:], "a blob that it names is lost")
                    if self._link_record(written.path, record, shape):
                        return record
        raise self._contended(next(record_paths(self.top, record.kind, record.key)))

    def replace(self, record: Record) -> None:
        """Store ``record`` durably, in the place of the one that its key has, if it has one.

        For what a user asks for by name. A result that was computed twice is :meth:`put`.

        Raises:
            StoreError: a blob that it names is not stored, or the store cannot be written.
        """
        with explained(self.root), publishing(self.top):
            former = self._load(record.kind, record.key, object)
            if former is not None and self._has_blobs(record):
                for blob in record.blobs:
                    mark_wanted(self.path(blob.sha256))
                with draft(self.top / "tmp", [encode_record(record)]) as written:
                    written.path.replace(former[1])
                sync_folders(former[1].parent, self.top)
                return
        self.put(record)

    def forget(self, kind: str, key: str) -> None:
        """Remove the record of ``key``, if there is one; its blobs stay until a collection.

        Raises:
            StoreError: the store cannot be written.
        """
        with explained(self.root), publishing(self.top):
            found = self._load(kind, key, object)
            if found is not None:
                found[1].unlink(missing_ok=True)

    def records(self, kind: str, shape: type[object] = object) -> Iterator[Record]:
        """Yield the readable records of a kind, in the order of their keys, blobs unchecked.

        Of each key that whose value is of ``shape``. A record of a later version becomes an
        incident.
        """
        for key in self.keys(kind, ""):
            try:
                with explained(self.root):
                    found = self._load(kind, key, shape)
            except NewerRecordError as error:
                self.note(next(record_paths(self.top, kind, key)), str(error))
                continue
            if found:
                yield found[0]

    def kinds(self) -> list[str]:
        """Return the kinds of which there are records, sorted."""
        with explained(self.root):
            return sorted(path.name for path in (self.top / "ac").iterdir() if path.is_dir())

    def keys(self, kind: str, prefix: str) -> list[str]:
        """Return the keys of a kind that begin with ``prefix`` (lower-case hex), sorted."""
        folder = self.top / "ac" / check_kind(kind)
        if prefix and not _HEX.fullmatch(prefix):
            message = f"key prefix {prefix!r}: expected lower-case hex digits"
            raise ValueError(message)
        shard = f"{prefix[:_SHARD_DIGITS]:?<{_SHARD_DIGITS}}"
        with explained(self.root):
            found = {key_of(path.name) for path in folder.glob(f"{shard}/{prefix}*")}
            return sorted(found - {""})

    # Work in progress

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Lend a new private folder on the store's file system; it is deleted afterwards."""
        folder = self.top / "tmp" / new_name()
        with explained(self.root):
            folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def flight(
        self, _kind: str, _key: str, _shape: type[object] = object
    ) -> Iterator[Record | None]:
        """Wait for our turn among hosts: a store without remote tiers has no others."""
        yield None

    def share(self, record: Record) -> None:
        """Send what came to a record after it was stored, statements, to remote tiers."""

    def settled(self, _say: Callable[[str], None] = lambda _text: None) -> Store:
        """Return this store, after sending what remote tiers did not take when it was made."""
        return self

    def unanswered(self) -> tuple[str, ...]:
        """Return why remote tiers did not answer: a store without any has none."""
        return ()

    def note(self, path: Path | str, reason: str) -> None:
        """Add an incident, unless it is known."""
        incident = Incident(path=str(path), reason=reason)
        if incident not in self.incidents:
            self.incidents.append(incident)

    # Inside

    def _link_record(self, written: Path, record: Record, shape: type[object]) -> bool:
        """Give a record its name; False where one that is not of another shape has it."""
        for path in record_paths(self.top, record.kind, record.key):
            if link_new(written, path, self.top):
                return True
            found = read_record(path, shape)
            if found is None or not found.other:
                return False
        message = (
            f"store {self.root}: other versions of trtbuild have taken every place of "
            f"{record.kind} record {record.key[:12]}. Give another folder with --store"
        )
        raise StoreError(message)

    def _put_blob(self, name: str, chunks: Iterable[bytes], size_bytes: int) -> Blob:
        with explained(self.root):
            require_room(self.top, size_bytes)
            with draft(self.top / "tmp", chunks) as written:
                blob = Blob(name=name, sha256=written.sha256, bytes=written.size_bytes)
                return self._publish(written, blob)

    def _publish(self, written: Draft, blob: Blob) -> Blob:
        final = self.path(blob.sha256)
        for _ in range(_ATTEMPTS):
            if link_new(written.path, final, self.top):
                return blob
            with contextlib.suppress(BlobLostError, FileNotFoundError):
                with publishing(self.top):
                    mark_wanted(final)
                self._verified(blob.sha256, digest_file(final, _ANY_SIZE))
                return blob
        raise self._contended(final)

    def _verified(self, sha256: str, content: Content | None) -> Content:
        path = self.path(sha256)
        if content is None:
            message = f"store {self.root}: blob {sha256} is missing. {_MAKE_ANEW}"
            raise BlobLostError(message, f"missing in the store {self.root}")
        if not content.fault and content.sha256 == sha256:
            return content
        reason = content.fault or f"its content has the digest {content.sha256}"
        self._set_aside(path, content.file_id, reason)
        message = (
            f"store {path}: not to be used: {reason}. It was set aside in quarantine. "
            f"{_MAKE_ANEW}"
        )
        raise BlobLostError(message, f"{path}: {reason}; it was set aside in quarantine")

    def _has_blobs(self, record: Record) -> bool:
        for blob in record.blobs:
            path = self.path(blob.sha256)
            content = file_fault(path, blob.bytes)
            if content is None:
                self.note(path, f"missing, named by {record.kind} record {record.key}")
                return False
            if content.fault:
                self._set_aside(path, content.file_id, content.fault)
                return False
        return True

    def _load(
        self, kind: str, key: str, shape: type[object]
    ) -> tuple[Record, Path, tuple[int, int]] | None:
        for path in record_paths(self.top, kind, key):
            found = read_record(path, shape)
            if found is None or found.other:
                continue
            if found.record:
                return found.record, path, found.file_id
            self._set_aside(path, found.file_id, found.fault)
        return None

    def _set_aside(self, path: Path, file_id: tuple[int, int], reason: str) -> None:
        if set_aside(path, file_id, self.top / "quarantine"):
            self.note(path, f"set aside in quarantine: {reason}")
            kind = path.parent.parent.name if path.is_relative_to(self.top / "ac") else "blob"
            tally = counters.Tally(tier="local", kind=kind, outcome="corrupt", count=1)
            counters.count(self, tally)

    def _contended(self, path: Path) -> StoreError:
        return StoreError(
            f"store {path}: found damaged {_ATTEMPTS} times in a row while publishing. "
            "Something else changes it: check the disk, or give another folder with --store"
        )
