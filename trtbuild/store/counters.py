"""What the store did for its users: hits, misses, errors, bypasses, bytes and seconds saved.

Counters are advisory: nothing is decided by them, and a failure to write them is ignored. A
process adds up in memory and appends one line to the day's file when it ends, or once a minute
while it counts. A line is one write to a file that is opened for appending, so that processes
need no lock; it begins with a line feed, so that one which was cut short spoils no other. Days
that are over are folded into ``total.json`` by the collection.

    v1/counters/20260131.jsonl     one line per process and minute
    v1/counters/total.json         the sum of the days up to ``through``
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Literal

import msgspec

from trtbuild.canonical import encode
from trtbuild.engine import Value
from trtbuild.store.temporary import new_name

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.store.local import Store
    from trtbuild.store.record import Record

Outcome = Literal["hit", "miss", "error", "bypass", "corrupt", "loaded", "refused"]
"""``error``: the tier could not be asked, which is no miss. ``bypass``: it was not to be asked.
``corrupt``: what it had failed verification and was set aside. ``loaded`` and ``refused`` are
what services asked to load: those that passed, and those that a check of trust stopped."""

_FLUSH_S = 60.0
_OPEN_DAYS = 2
"""A day is folded when it has been over for so long that nobody appends to its file."""


class Tally(Value, frozen=True, kw_only=True):
    """How often asking one tier for one kind of result ended in one way.

    ``size_bytes`` is what those results weigh, ``saved_s`` what making them took where that is
    recorded: of engines their build, of whole runs the stages that they computed.
    """

    tier: str
    kind: str
    outcome: str
    count: int
    size_bytes: int = 0
    saved_s: float = 0.0


class _Total(Value, frozen=True, kw_only=True):
    """The file of folded days; ``through`` is the last of them, ``20260131``."""

    through: str
    tallies: tuple[Tally, ...]


class _Build(msgspec.Struct, frozen=True):
    """What of a manifest is counted, whatever else its version has."""

    build_seconds: float = 0.0


_Key = tuple[str, str, str]


@dataclass
class _Pending:
    """What this process has counted since it wrote last."""

    sums: dict[_Key, Tally] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)


_PENDING: dict[Path, _Pending] = {}
_LOCK = threading.Lock()


def count(store: Store, tally: Tally) -> None:
    """Add ``tally`` to the counters of ``store``; never fails, and rarely writes."""
    with _LOCK:
        if not _PENDING:
            atexit.register(_flush_all)
        pending = _PENDING.setdefault(store.top / "counters", _Pending())
        _add(pending.sums, tally)
        due = time.monotonic() - pending.since > _FLUSH_S
    if due:
        flush(store)


def count_record(store: Store, record: Record, *, found: bool, tier: str = "local") -> None:
    """Count a record that was found in ``tier``, or had to be made."""
    tally = Tally(tier=tier, kind=record.kind, outcome="miss", count=1)
    if found:
        tally = msgspec.structs.replace(
            tally,
            outcome="hit",
            size_bytes=sum(blob.bytes for blob in record.blobs),
            saved_s=_build_s(record),
        )
    count(store, tally)


def flush(store: Store) -> None:
    """Write what this process has counted for ``store``."""
    _flush(store.top / "counters")


def totals(store: Store) -> tuple[Tally, ...]:
    """Return all that was ever counted and written, sorted by tier, kind and outcome."""
    folder = store.top / "counters"
    total = _read_total(folder)
    sums: dict[_Key, Tally] = {}
    for tally in total.tallies:
        _add(sums, tally)
    for path in _days(folder):
        if path.stem > total.through:
            for tally in _read_day(path):
                _add(sums, tally)
    return tuple(sums[key] for key in sorted(sums))


def fold(store: Store) -> None:
    """Add the days that are over to the total and delete their files; can be repeated.

    Only the collection calls this, of which one runs at a time. A crash between both steps
    leaves days that the total already names, which nobody counts again.
    """
    folder = store.top / "counters"
    last = _day(datetime.now(timezone.utc) - timedelta(days=_OPEN_DAYS))
    over = [path for path in _days(folder) if path.stem <= last]
    total = _read_total(folder)
    sums: dict[_Key, Tally] = {}
    for tally in total.tallies:
        _add(sums, tally)
    fresh = [path for path in over if path.stem > total.through]
    for path in fresh:
        for tally in _read_day(path):
            _add(sums, tally)
    if fresh:
        value = _Total(through=fresh[-1].stem, tallies=tuple(sums[key] for key in sorted(sums)))
        draft = store.top / "tmp" / new_name()
        draft.write_bytes(encode(value))
        draft.replace(folder / "total.json")
    for path in over:
        path.unlink(missing_ok=True)


def _build_s(record: Record) -> float:
    if record.kind != "engine":
        return 0.0
    try:
        return msgspec.json.decode(record.value, type=_Build).build_seconds
    except msgspec.MsgspecError:
        return 0.0


def _add(sums: dict[_Key, Tally], tally: Tally) -> None:
    key = (tally.tier, tally.kind, tally.outcome)
    old = sums.get(key)
    if old is not None:
        tally = msgspec.structs.replace(
            old,
            count=old.count + tally.count,
            size_bytes=old.size_bytes + tally.size_bytes,
            saved_s=old.saved_s + tally.saved_s,
        )
    sums[key] = tally


def _flush_all() -> None:
    for folder in tuple(_PENDING):
        _flush(folder)


def _flush(folder: Path) -> None:
    with _LOCK:
        pending = _PENDING.get(folder)
        sums = pending.sums if pending else {}
        _PENDING[folder] = _Pending()
    if not sums:
        return
    line = b"\n" + encode([sums[key] for key in sorted(sums)])
    path = folder / f"{_day(datetime.now(timezone.utc))}.jsonl"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(OSError):  # a full or read-only disk: they are advisory
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        file = os.open(path, flags, 0o600)
        try:
            os.write(file, line)
        finally:
            os.close(file)


def _forget() -> None:
    """Begin anew in a forked child: what its parent counted, its parent writes."""
    global _LOCK  # noqa: PLW0603  a thread of the parent may have held it
    _LOCK = threading.Lock()
    for folder in _PENDING:
        _PENDING[folder] = _Pending()


os.register_at_fork(after_in_child=_forget)


def _day(moment: datetime) -> str:
    return moment.strftime("%Y%m%d")


def _days(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def _read_day(path: Path) -> list[Tally]:
    """Return the tallies of one file; a line that was cut short counts nothing."""
    tallies: list[Tally] = []
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                tallies += msgspec.json.decode(line, type=list[Tally])
    return tallies


def _read_total(folder: Path) -> _Total:
    try:
        return msgspec.json.decode((folder / "total.json").read_bytes(), type=_Total)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return _Total(through="", tallies=())
