"""Publishing and collecting keep out of each other's way; looking up never waits for either.

Who publishes holds ``v1/lease/publish`` shared for as long as it takes to make sure that what
a record names is there and to name the record. The collection holds it alone for one batch of
removals at a time. Where locks do not work, or one is held for too long, publishing goes on
without: the worst that can happen is a record whose blob is gone, which is a miss.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK = "publish"

USE_GRAIN_S = 3600.0
"""The last use of a record is known this well: it is written at most so often."""

_PATIENCE_S = 30.0
"""A collection holds the lock for milliseconds; one that was stopped must not stop others."""

_PAUSE_S = 0.005


@contextlib.contextmanager
def publishing(top: Path) -> Iterator[None]:
    """Keep the collection from removing anything while a record gets its name."""
    with locked(top / "lease" / LOCK, fcntl.LOCK_SH, _PATIENCE_S):
        yield


@contextlib.contextmanager
def locked(path: Path, operation: int, patience_s: float) -> Iterator[bool]:
    """Hold a lock on the file ``path``; False where it could not be had in time, or at all."""
    flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(path, flags, 0o444)
    try:
        yield _acquired(file, operation, time.monotonic() + patience_s)
    finally:
        os.close(file)


@contextlib.contextmanager
def unheld(path: Path) -> Iterator[bool]:
    """Hold the lock on an existing file of somebody else; False where somebody holds it.

    Raises:
        FileNotFoundError: the file is gone.
    """
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield _acquired(file, fcntl.LOCK_EX, 0.0)
    finally:
        os.close(file)


def _acquired(file: int, operation: int, deadline: float) -> bool:
    while not (answer := _answer(file, operation)) and answer is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_S)
    return bool(answer)


def _answer(file: int, operation: int) -> bool | None:
    """Return whether the lock is ours now, None on a file system without locks."""
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def mark_used(path: Path) -> None:
    """Note that a record is used now: its file's time of change is that of its last use.

    Advisory: a store that cannot be written to is read all the same.
    """
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > USE_GRAIN_S:
            os.utime(path)


def mark_wanted(path: Path) -> None:
    """Make an old blob as young as a new one, so that the collection lets it be.

    Raises:
        OSError: it is gone.
    """
    os.utime(path, follow_symlinks=False)
