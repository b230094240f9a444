"""Atomic publishing: a file appears whole, verified and durable under its name, or not at all.

The order is the point: data, then name, then folders (fsync after each). Leaving any of these
out was measured to lose every publish at a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.engine import Value
from trtbuild.errors import StoreError
from trtbuild.store.temporary import new_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_RIGHT = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class Draft(Value, frozen=True, kw_only=True):
    """A complete, synced, read-only file that no reader looks at yet."""

    path: Path
    sha256: str
    size_bytes: int


@contextlib.contextmanager
def explained(place: Path) -> Iterator[None]:
    """Turn the operating system's refusals about ``place`` into errors with a remedy.

    Raises:
        StoreError: instead of any OSError of the body.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            remedy = "free space there, or give another folder with --store"
        elif error.errno in _NO_RIGHT:
            remedy = "give a folder that you may write to with --store"
        elif error.errno in (errno.EMFILE, errno.ENFILE):
            remedy = "raise the limit on open files (ulimit -n)"
        else:
            remedy = "check that file system, or give another folder with --store"
        reason = error.strerror or str(error)
        culprit = error.filename or place
        message = f"store {place}: {reason} ({culprit}). Nothing was published; {remedy}"
        raise StoreError(message) from error


def require_room(folder: Path, size_bytes: int) -> None:
    """Refuse to begin a write of ``size_bytes`` that cannot end.

    Raises:
        StoreError: the file system of ``folder`` has less room than that.
    """
    room = os.statvfs(folder)
    free_bytes = room.f_bavail * room.f_frsize
    if free_bytes < size_bytes:
        message = (
            f"store {folder}: {size_bytes} bytes to write, {free_bytes} free. Nothing was "
            "published; free space there, or give another folder with --store"
        )
        raise StoreError(message)


@contextlib.contextmanager
def draft(folder: Path, chunks: Iterable[bytes | bytearray]) -> Iterator[Draft]:
    """Write ``chunks`` to a new private file in ``folder``; its temporary name ends with us."""
    path = folder / new_name()
    try:
        yield _write(path, chunks)
    finally:
        path.unlink(missing_ok=True)


def _write(path: Path, chunks: Iterable[bytes | bytearray]) -> Draft:
    total = hashlib.sha256()
    size_bytes = 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)
    with file:  # leaving it reports a close that failed
        for chunk in chunks:
            total.update(chunk)
            size_bytes += len(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
    return Draft(path=path, sha256=total.hexdigest(), size_bytes=size_bytes)


def link_new(source: Path, final: Path, top: Path) -> bool:
    """Give a draft its name and make the name durable; False where the name is taken.

    Folders between ``top`` and ``final`` are made as needed. All of them are synced in either
    case: whoever published first may have died before it did so.
    """
    make_folders(final.parent, top)
    try:
        os.link(source, final)
    except FileExistsError:
        is_new = False
    else:
        is_new = True
    sync_folders(final.parent, top)
    return is_new


def make_folders(folder: Path, top: Path) -> None:
    """Make ``folder`` and what is missing above it, down from ``top``, for the owner alone."""
    for each in reversed(_chain(folder, top)):
        with contextlib.suppress(FileExistsError):
            each.mkdir(mode=0o700)


def sync_folders(folder: Path, top: Path) -> None:
    """Make the names in ``folder`` and in its parents up to ``top`` durable, deepest first."""
    for each in _chain(folder, top):
        descriptor = os.open(each, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def set_aside(path: Path, file_id: tuple[int, int], quarantine: Path) -> bool:
    """Move a file that failed verification to ``quarantine``; False where it is gone already.

    ``file_id`` is (device, inode) of what was read, so that a good file which another process
    has put in its place since then stays.
    """
    try:
        now = path.lstat()
        if (now.st_dev, now.st_ino) != file_id:
            return False
        path.rename(quarantine / f"{path.name}.{os.urandom(4).hex()}")
    except FileNotFoundError:
        return False
    return True


def _chain(folder: Path, top: Path) -> list[Path]:
    """Return ``folder`` and its parents up to and including ``top``."""
    if not folder.is_relative_to(top):
        message = f"{folder} is not in {top}"
        raise ValueError(message)
    return [folder, *(each for each in folder.parents if each.is_relative_to(top))]
