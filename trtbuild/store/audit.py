"""``cache verify``: every byte of a store is read and hashed, every record decoded."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trtbuild.canonical import sha256_file
from trtbuild.engine import Manifest, Value
from trtbuild.store.pins import read_pins
from trtbuild.store.publish import explained, set_aside
from trtbuild.store.reader import digest_file, file_fault
from trtbuild.store.record import NewerRecordError, OtherShapeError, is_digest
from trtbuild.store.resolve import Plan, engines_of_bytes, put_plan
from trtbuild.store.versions import key_of, read_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trtbuild.store.local import Store
    from trtbuild.store.record import Record

_ANY_SIZE = 1 << 62
_PARTS = 3
_ATTESTATION_PARTS = 2


class Fault(Value, frozen=True, kw_only=True):
    """One thing that is wrong.

    ``missing`` is a record whose blob is lost, ``foreign`` what trtbuild never writes there.
    ``repaired`` where it lies in quarantine now.
    """

    path: str
    kind: Literal["corrupt", "missing", "foreign"]
    reason: str
    repaired: bool = False


class Audit(Value, frozen=True, kw_only=True):
    """What a store holds and what is wrong with it.

    ``newer`` counts records of a later version, which are left alone; ``unnamed_blobs`` are
    those that no record names, for the collection.
    """

    records: int
    blobs: int
    size_bytes: int
    newer: int
    unnamed_blobs: int
    faults: tuple[Fault, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, or nothing any more."""
        return all(fault.repaired for fault in self.faults)


@dataclass(kw_only=True)
class _Count:
    """What was seen so far; ``named`` are the digests that whole records name.

    ``engines`` are the blobs of engines by their key, none of those of a later version;
    ``plans`` the records that find them by the files that they are in.
    """

    repair: bool
    records: int = 0
    blobs: int = 0
    size_bytes: int = 0
    newer: int = 0
    named: set[str] = field(default_factory=set)
    engines: dict[str, tuple[str, ...]] = field(default_factory=dict)
    plans: dict[Path, Record] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def audit(store: Store, *, repair: bool, say: Callable[[str], None]) -> Audit:
    """Read all of ``store``; with ``repair``, what is wrong is moved to quarantine.

    What was damaged is a miss then, and is made again when it is asked for. ``say`` is told
    how far it came.

    Raises:
        StoreError: the store cannot be read.
    """
    count = _Count(repair=repair)
    with explained(store.root):
        whole = _audit_blobs(store, count, say)
        say("records")
        _audit_records(store, count, whole)
        _audit_plans(store, count)
        _audit_statements(store, count)
        _audit_pins(store, count)
    return Audit(
        records=count.records,
        blobs=count.blobs,
        size_bytes=count.size_bytes,
        newer=count.newer,
        unnamed_blobs=len(whole - count.named) if not count.newer else 0,
        faults=tuple(count.faults),
    )


def _audit_blobs(store: Store, count: _Count, say: Callable[[str], None]) -> set[str]:
    """Hash every blob; return the digests of those that are what their name says."""
    whole = set()
    paths = list(_tree(store.top / "cas"))
    for index, path in enumerate(paths):
        say(f"blobs: {index + 1} of {len(paths)} ")
        if not _in_place(path.relative_to(store.top / "cas").parts, "sha256"):
            _fault(store, count, path, "foreign", "no blob has such a name")
            continue
        content = digest_file(path, _ANY_SIZE)
        if content is None:
            continue  # collected meanwhile
        reason = content.fault or (
            "" if content.sha256 == path.name else f"its digest is {content.sha256}"
        )
        if reason:
            _fault(store, count, path, "corrupt", reason)
            continue
        whole.add(path.name)
        count.blobs += 1
        with contextlib.suppress(FileNotFoundError):
            count.size_bytes += path.stat().st_size
    return whole


def _audit_records(store: Store, count: _Count, whole: set[str]) -> None:
    for path in _tree(store.top / "ac"):
        parts = path.relative_to(store.top / "ac").parts
        if not _in_place((*parts[:-1], key_of(parts[-1])), parts[0]):
            _fault(store, count, path, "foreign", "no record has such a name")
            continue
        try:
            found = read_record(path)
        except NewerRecordError:
            count.newer += 1
            count.engines.setdefault(key_of(path.name), ())
            continue
        if found is None:
            continue
        if found.record is None:
            _fault(store, count, path, "corrupt", found.fault)
            continue
        record = found.record
        lost = [blob.sha256 for blob in record.blobs if _is_lost(store, blob.sha256, whole)]
        if lost:
            _fault(store, count, path, "missing", f"blob {lost[0]} that it names is lost")
            continue
        count.records += 1
        count.size_bytes += found.size_bytes
        count.named.update(blob.sha256 for blob in record.blobs)
        if record.kind == "engine":
            count.engines[record.key] = tuple(blob.sha256 for blob in record.blobs)
        elif record.kind == "plan":
            count.plans[path] = record


def _audit_plans(store: Store, count: _Count) -> None:
    """Check that an engine is found by its digest; with ``repair``, that it is again."""
    for path, record in count.plans.items():
        try:
            key = record.read(Plan).engine_key
        except OtherShapeError:
            continue
        blobs = count.engines.get(key)
        if blobs is None or (blobs and record.key not in blobs):
            state = "lost" if blobs is None else "another"
            reason = f"engine {key} that it names is {state}"
            _fault(store, count, path, "missing", reason)
            if count.repair and (engine := next(engines_of_bytes(store, record.key), None)):
                put_plan(store, engine.read(Manifest))


def _is_lost(store: Store, sha256: str, whole: set[str]) -> bool:
    """Tell whether a blob is lost or damaged; one may have come since the first pass."""
    if sha256 in whole:
        return False
    content = digest_file(store.path(sha256), _ANY_SIZE)
    return content is None or bool(content.fault) or content.sha256 != sha256


def _audit_statements(store: Store, count: _Count) -> None:
    """Check that signed statements are named by their own digest; what they say is not read."""
    folder = store.top / "att"
    for path in _tree(folder):
        parts = path.relative_to(folder).parts
        named = len(parts) == _ATTESTATION_PARTS and all(map(is_digest, parts))
        if not named or path.is_symlink() or not path.is_file():
            _fault(store, count, path, "foreign", "no statement has such a name")
        elif sha256_file(path) != path.name:
            _fault(store, count, path, "corrupt", "its digest is not its name")


def _audit_pins(store: Store, count: _Count) -> None:
    found, damaged = read_pins(store)
    for name, reason in damaged.items():
        _fault(store, count, store.top / "refs" / name, "corrupt", reason)
    for name, pin in found.items():
        if pin.sha256 not in count.named:
            path = store.top / "refs" / name
            reason = f"engine {pin.sha256} that it pins is lost: build it again, or unpin it"
            count.faults.append(Fault(path=str(path), kind="missing", reason=reason))


def _tree(folder: Path) -> Iterator[Path]:
    """Yield everything below ``folder`` that is no folder, sorted; links are not followed."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from (Path(place) / name for name in sorted([*files, *links]))


def _in_place(parts: tuple[str, ...], first: str) -> bool:
    """Tell whether a path is ``<first>/ab/<digest that begins with ab>``."""
    return (
        len(parts) == _PARTS
        and parts[0] == first
        and is_digest(parts[2])
        and parts[2].startswith(parts[1])
        and len(parts[1]) == _ATTESTATION_PARTS
    )


def _fault(
    store: Store,
    count: _Count,
    path: Path,
    kind: Literal["corrupt", "missing", "foreign"],
    reason: str,
) -> None:
    repaired = False
    if count.repair:
        found = file_fault(path, 0)
        repaired = found is None or set_aside(path, found.file_id, store.top / "quarantine")
    count.faults.append(Fault(path=str(path), kind=kind, reason=reason, repaired=repaired))
