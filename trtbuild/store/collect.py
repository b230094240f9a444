"""The collection: a store that grew beyond a limit loses what was not used for longest.

Mark: what pins keep, what somebody holds a lease on, what was used or made of late. Sweep: the
other records, least recently used first, until the store is small enough, and then the blobs
that no record names. Records go before blobs, so that a collection killed at any moment leaves
blobs that nobody names, which the next one finds, and never a record without its bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from trtbuild.engine import Value
from trtbuild.errors import StoreError
from trtbuild.store import counters, inventory
from trtbuild.store.guard import LOCK, locked, unheld
from trtbuild.store.pins import pins
from trtbuild.store.publish import explained
from trtbuild.store.temporary import remove_orphans

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from trtbuild.store.inventory import Entry, File, Inventory
    from trtbuild.store.local import Store

Item = TypeVar("Item")

_NS = 1_000_000_000
_DAY_S = 24 * 3600
_FORGOTTEN_S = 7 * _DAY_S
"""How long what failed verification can be looked at, and a lease that nobody holds lies."""

_BATCH = 64
"""Removals under one lock: a few milliseconds, for which publishing waits."""

_COLLECTION = "collect"


class Limits(Value, frozen=True, kw_only=True):
    """When to collect, and what to let be.

    Above ``high_bytes`` the store shrinks to ``low_bytes``. What was used within ``keep_s``
    stays, and what was used or made within ``grace_s``: somebody may be about to name it.
    """

    high_bytes: int
    low_bytes: int
    keep_s: float = _DAY_S
    grace_s: float = 3600.0
    patience_s: float = 60.0


class Collection(Value, frozen=True, kw_only=True):
    """What a collection removed, or would.

    ``pinned_bytes`` is what pins keep, ``recent_bytes`` what else was too young to go.
    ``small_enough`` is false where the store is still above its limit. ``broken_pins`` are
    pins whose engine is lost.
    """

    dry_run: bool
    before_bytes: int
    after_bytes: int
    records: int
    blobs: int
    quarantined: int
    temporaries: int
    pinned_bytes: int
    recent_bytes: int
    small_enough: bool
    broken_pins: tuple[str, ...]


@dataclass(kw_only=True)
class _Plan:
    """What to remove: records, least recently used first, and blobs without any."""

    before_bytes: int
    entries: list[Entry] = field(default_factory=list)
    blobs: list[File] = field(default_factory=list)
    pinned_bytes: int = 0
    recent_bytes: int = 0
    broken_pins: tuple[str, ...] = ()


def collect(store: Store, limits: Limits, *, dry_run: bool = False) -> Collection:
    """Shrink ``store`` as ``limits`` say, and remove what is left of dead processes.

    Can be killed and repeated at any time, and run beside builds and lookups.

    Raises:
        StoreError: another collection runs, the store cannot be written, or it holds what a
            later version wrote.
    """
    with explained(store.root), _alone(store, limits):
        plan = _plan(store, limits)
        if dry_run:
            entries, blobs = plan.entries, plan.blobs
            quarantined = temporaries = 0
        else:
            entries = _sweep_records(store, plan.entries, limits)
            blobs = _sweep_blobs(store, plan, entries, limits)
            quarantined = _sweep_quarantine(store)
            temporaries = remove_orphans(store.top / "tmp") + _sweep_leases(store)
            counters.fold(store)
    gone = _bytes(entry.file for entry in entries) + _bytes(blobs)
    after = plan.before_bytes - gone
    return Collection(
        dry_run=dry_run,
        before_bytes=plan.before_bytes,
        after_bytes=after,
        records=len(entries),
        blobs=len(blobs),
        quarantined=quarantined,
        temporaries=temporaries,
        pinned_bytes=plan.pinned_bytes,
        recent_bytes=plan.recent_bytes,
        small_enough=after <= limits.high_bytes,
        broken_pins=plan.broken_pins,
    )


@contextlib.contextmanager
def _alone(store: Store, limits: Limits) -> Iterator[None]:
    path = store.top / "lease" / _COLLECTION
    with locked(path, fcntl.LOCK_EX, limits.patience_s) as acquired:
        if not acquired:
            message = (
                f"store {store.root}: another collection is at work, or file locks do not work "
                f"there (waited {limits.patience_s:g} s). Run it later, or where they do"
            )
            raise StoreError(message)
        yield


# What to remove


def _plan(store: Store, limits: Limits) -> _Plan:
    roots = pins(store)
    found = inventory.take(store)
    pinned: set[int] = set()
    broken = []
    for name, pin in roots.items():
        kept = list(found.kept_by(pin))
        pinned |= {id(entry) for entry in kept}
        if not any(pin.sha256 in entry.blobs and _is_whole(found, entry) for entry in kept):
            broken.append(name)
    recent_ns = time.time_ns() - int(max(limits.keep_s, limits.grace_s) * _NS)
    held = _held_keys(store)
    young = {
        id(entry)
        for entry in found.entries.values()
        if id(entry) not in pinned and (entry.used_ns > recent_ns or entry.key in held)
    }
    names = Counter(blob for entry in found.entries.values() for blob in entry.blobs)
    plan = _Plan(before_bytes=found.size_bytes, broken_pins=tuple(broken))
    plan.pinned_bytes = _weight(found, pinned, frozenset())
    plan.recent_bytes = _weight(found, young, pinned)
    size = found.size_bytes - _choose_unnamed(plan, found, names, limits)
    if size > limits.high_bytes:
        candidates = [e for e in found.entries.values() if id(e) not in pinned | young]
        candidates.sort(key=lambda entry: (entry.used_ns, entry.kind, entry.key))
        for entry in candidates:
            if size <= limits.low_bytes:
                break
            size -= _choose(plan, found, names, entry)
    return plan


def _is_whole(found: Inventory, entry: Entry) -> bool:
    return all(blob in found.blobs for blob in entry.blobs)


def _weight(found: Inventory, chosen: set[int], without: set[int] | frozenset[int]) -> int:
    """Return the bytes of ``chosen`` records, each blob once, less those of others."""
    theirs = {b for e in found.entries.values() if id(e) in without for b in e.blobs}
    total = 0
    for entry in found.entries.values():
        if id(entry) in chosen:
            total += entry.file.size_bytes
            for blob in entry.blobs:
                if blob in found.blobs and blob not in theirs:
                    total += found.blobs[blob].size_bytes
                    theirs.add(blob)
    return total


def _choose_unnamed(plan: _Plan, found: Inventory, names: Counter[str], limits: Limits) -> int:
    """Choose the blobs that no record names and that are not young; return their bytes."""
    before = _grace_ns(limits)
    chosen = [
        file
        for sha256, file in found.blobs.items()
        if not names[sha256] and file.changed_ns < before
    ]
    plan.blobs += chosen
    return _bytes(chosen)


def _choose(plan: _Plan, found: Inventory, names: Counter[str], entry: Entry) -> int:
    """Choose a record and the blobs that it names last; return their bytes."""
    plan.entries.append(entry)
    freed = entry.file.size_bytes
    for sha256 in entry.blobs:
        names[sha256] -= 1
        if not names[sha256] and sha256 in found.blobs:
            plan.blobs.append(found.blobs[sha256])
            freed += found.blobs[sha256].size_bytes
    return freed


def _held_keys(store: Store) -> frozenset[str]:
    """Return the keys that somebody holds a lease on now."""
    held = []
    for path in (store.top / "lease").iterdir():
        kind, dot, key = path.name.partition(".")
        if dot and kind:
            with contextlib.suppress(FileNotFoundError), unheld(path) as free:
                if not free:
                    held.append(key)
    return frozenset(held)


# Removing it


def _sweep_records(store: Store, entries: list[Entry], limits: Limits) -> list[Entry]:
    """Remove records, but those that were used since the plan; return which went."""
    return [
        entry
        for batch in _batches(store, entries, limits)
        for entry in batch
        if _remove(entry.file.path, entry.file.changed_ns)
    ]


def _sweep_blobs(store: Store, plan: _Plan, gone: list[Entry], limits: Limits) -> list[File]:
    """Remove the blobs that no record names now; return which went.

    A blob that was wanted again since the plan is young now, and a record that stayed after
    all keeps its blobs.
    """
    left = {id(entry) for entry in gone}
    kept = {b for entry in plan.entries if id(entry) not in left for b in entry.blobs}
    before = _grace_ns(limits)
    return [
        file
        for batch in _batches(store, plan.blobs, limits)
        for file in batch
        if file.name not in kept and _remove(file.path, before)
    ]


def _batches(store: Store, items: list[Item], limits: Limits) -> Iterator[list[Item]]:
    """Yield the items in batches, each under the lock that publishing waits for."""
    for start in range(0, len(items), _BATCH):
        with locked(store.top / "lease" / LOCK, fcntl.LOCK_EX, limits.patience_s) as acquired:
            if not acquired:
                message = (
                    f"store {store.root}: busy for {limits.patience_s:g} s. What was removed "
                    "so far stays removed; run it again later"
                )
                raise StoreError(message)
            yield items[start : start + _BATCH]


def _remove(path: Path, before_ns: int) -> bool:
    """Remove a file unless it was changed, so used or wanted, after ``before_ns``."""
    try:
        if path.lstat().st_mtime_ns > before_ns:
            return False
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _sweep_quarantine(store: Store) -> int:
    """Remove what was set aside long ago; the time of a renaming is that of the inode."""
    removed = 0
    for path in (store.top / "quarantine").iterdir():
        status = path.lstat()
        if time.time() - status.st_ctime > _FORGOTTEN_S:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            removed += 1
    return removed


def _sweep_leases(store: Store) -> int:
    """Remove the files of leases that nobody took for long; the locks themselves stay."""
    removed = 0
    for path in (store.top / "lease").iterdir():
        if "." in path.name and time.time() - path.lstat().st_mtime > _FORGOTTEN_S:
            with contextlib.suppress(FileNotFoundError), unheld(path) as free:
                if free:
                    path.unlink(missing_ok=True)
                    removed += 1
    return removed


def _grace_ns(limits: Limits) -> int:
    return time.time_ns() - int(limits.grace_s * _NS)


def _bytes(files: Iterable[File]) -> int:
    return sum(file.size_bytes for file in files)
