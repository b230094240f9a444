"""The collection: a store that grew beyond a limit loses what was not used for longest.

Mark: what pins keep, what somebody holds a lease on, what was used or made of late. Sweep: the
other records, least recently used first, until the store is small enough, and then the blobs
that no record names. Records go before blobs, so that a collection killed at any moment leaves
blobs that nobody names, which the next one finds, and never a record without its bytes. What
belongs to an engine goes last (:mod:`trtbuild.store.remains`).
"""

from __future__ import annotations

import contextlib
import fcntl
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
from trtbuild.store.remains import FORGOTTEN_S, remains, remove
from trtbuild.store.temporary import remove_orphans

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from trtbuild.store.inventory import Entry, File, Inventory
    from trtbuild.store.local import Store
    from trtbuild.store.remains import Remain

Item = TypeVar("Item")

_NS = 1_000_000_000
_DAY_S = 24 * 3600
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

    ``quarantined`` are files of the quarantine, ``beside`` checkpoints, and statements and
    marks of engines that are gone. The bytes are of all that, records and blobs together.
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
    beside: int
    pinned_bytes: int
    recent_bytes: int
    small_enough: bool
    broken_pins: tuple[str, ...]


@dataclass(kw_only=True)
class _Plan:
    """What to remove: records, least recently used first, blobs without any, and the rest."""

    before_bytes: int
    entries: list[Entry] = field(default_factory=list)
    blobs: list[File] = field(default_factory=list)
    beside: list[Remain] = field(default_factory=list)
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
            entries, blobs, beside = plan.entries, plan.blobs, plan.beside
            temporaries = 0
        else:
            entries = _sweep_records(store, plan.entries, limits)
            blobs = _sweep_blobs(store, plan, entries, limits)
            beside = _sweep_beside(store, plan.beside, limits)
            temporaries = remove_orphans(store.top / "tmp") + _sweep_leases(store)
            counters.fold(store)
    gone = _bytes(entry.file for entry in entries) + _bytes(blobs) + _bytes(beside)
    after = plan.before_bytes - gone
    quarantined = sum(each.place == "quarantine" for each in beside)
    return Collection(
        dry_run=dry_run,
        before_bytes=plan.before_bytes,
        after_bytes=after,
        records=len(entries),
        blobs=len(blobs),
        quarantined=quarantined,
        temporaries=temporaries,
        beside=len(beside) - quarantined,
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
    young = _young(store, found, pinned, limits)
    others = remains(store)
    plan = _Plan(before_bytes=found.size_bytes + _bytes(others), broken_pins=tuple(broken))
    plan.pinned_bytes = _weight(found, pinned, frozenset())
    plan.recent_bytes = _weight(found, young, pinned)
    _choose_all(plan, found, others, pinned | young, limits)
    return plan


def _young(store: Store, found: Inventory, pinned: set[int], limits: Limits) -> set[int]:
    """Return what is too young to go, or being made, with all that goes with it."""
    recent_ns = time.time_ns() - int(max(limits.keep_s, limits.grace_s) * _NS)
    held = _held_keys(store)
    young = [
        entry
        for entry in found.entries.values()
        if entry.used_ns > recent_ns or entry.key in held
    ]
    units = {entry.unit for entry in young} - {""}
    young += [entry for entry in found.entries.values() if entry.unit in units]
    return {id(entry) for entry in young} - pinned


def _choose_all(
    plan: _Plan, found: Inventory, others: list[Remain], kept: set[int], limits: Limits
) -> None:
    """Choose what nobody needs; then, above the limit, what was not used for longest."""
    names = Counter(blob for entry in found.entries.values() for blob in entry.blobs)
    units = found.units()
    about: dict[str, list[Remain]] = {}
    for remain in others:
        about.setdefault(remain.subject if remain.subject in units else "", []).append(remain)
    loose = about.pop("", [])
    size = plan.before_bytes - _choose_unnamed(plan, found, names, limits)
    old = [r for r in loose if r.is_older(limits.grace_s if r.subject else FORGOTTEN_S)]
    size -= _choose_beside(plan, old)
    if size <= limits.high_bytes:
        return
    gone = {remain.path for remain in old}
    spare = [r for r in loose if not r.subject and r.path not in gone]
    size -= _choose_beside(plan, [r for r in spare if r.is_older(limits.keep_s)])
    candidates = [e for e in found.entries.values() if id(e) not in kept]
    candidates.sort(key=lambda entry: (entry.used_ns, entry.kind, entry.key))
    for entry in candidates:
        if size <= limits.low_bytes:
            break
        for each in units.pop(entry.unit, []) if entry.unit else [entry]:
            size -= _choose(plan, found, names, each)
        size -= _choose_beside(plan, about.pop(entry.unit, []))


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


def _choose_beside(plan: _Plan, chosen: list[Remain]) -> int:
    """Choose what is no record and no blob; return the bytes."""
    plan.beside += chosen
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


def _sweep_beside(store: Store, chosen: list[Remain], limits: Limits) -> list[Remain]:
    """Remove what belongs to nothing now; return what went."""
    return [
        remain
        for batch in _batches(store, chosen, limits)
        for remain in batch
        if remove(store, remain)
    ]


def _sweep_leases(store: Store) -> int:
    """Remove the files of leases that nobody took for long; the locks themselves stay."""
    removed = 0
    for path in (store.top / "lease").iterdir():
        if "." in path.name and time.time() - path.lstat().st_mtime > FORGOTTEN_S:
            with contextlib.suppress(FileNotFoundError), unheld(path) as free:
                if free:
                    path.unlink(missing_ok=True)
                    removed += 1
    return removed


def _grace_ns(limits: Limits) -> int:
    return time.time_ns() - int(limits.grace_s * _NS)


def _bytes(files: Iterable[File | Remain]) -> int:
    return sum(file.size_bytes for file in files)
