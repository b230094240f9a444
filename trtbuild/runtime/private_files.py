"""Reading files that decide about trust: only we or root may have written them.

A file is as trustworthy as the folder that it is in: who may write there can put an older file
of ours in its place. Folders above that one are not looked at, as volumes of a cluster are
mounted in folders that everybody may write to.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_MAX_LINKS = 8
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW


class UnusableError(OSError):
    """A file or folder is there and must not be used; the text says why."""


def check_folder(folder: Path) -> None:
    """Refuse a folder in which somebody else could replace our files.

    In a sticky folder nobody can, and on a file system that is mounted read-only nobody here
    can: so are the volumes that a cluster makes of its settings, in folders of mode 0777.

    Raises:
        UnusableError: it is no folder, others own it, or they may write to it.
        OSError: it is missing, or cannot be looked at.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        is_read_only = os.fstatvfs(descriptor).f_flag & os.ST_RDONLY
    finally:
        os.close(descriptor)
    if status.st_uid not in (os.geteuid(), 0):
        raise UnusableError(f"its folder {folder} belongs to user {status.st_uid}")
    if status.st_mode & _OTHERS and not status.st_mode & stat.S_ISVTX and not is_read_only:
        message = f"other users may write to its folder (chmod go-w {folder})"
        raise UnusableError(message)


def read(path: Path, limit_bytes: int) -> bytes:
    """Return the bytes of a file that is no link; what is looked at is what is read.

    Raises:
        UnusableError: the file or its folder is not ours or root's, or others may write to it;
            or it is no regular file, or larger than ``limit_bytes``.
        OSError: it is missing or cannot be read.
    """
    check_folder(path.parent)
    with os.fdopen(os.open(path, _FLAGS), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnusableError("it is not a regular file")
        _check_owner(status)
        if status.st_mode & _OTHERS:
            raise UnusableError(f"other users may write to it (chmod go-w {path})")
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise UnusableError(f"it has more than {limit_bytes} bytes")
    return data


def read_linked(path: Path, limit_bytes: int) -> bytes:
    """Return the bytes of a file that may be a link: a cluster's settings are links.

    Each link must be ours or root's, and stand in a folder as :func:`read` wants it.

    Raises:
        UnusableError: as :func:`read`, of any of the links too.
        OSError: it is missing or cannot be read.
    """
    for _ in range(_MAX_LINKS):
        path = path.parent.resolve(strict=True) / path.name
        status = path.lstat()
        if not stat.S_ISLNK(status.st_mode):
            return read(path, limit_bytes)
        check_folder(path.parent)
        _check_owner(status)
        path = path.parent / path.readlink()
    raise UnusableError(f"it is behind more than {_MAX_LINKS} links")


def _check_owner(status: os.stat_result) -> None:
    if status.st_uid not in (os.geteuid(), 0):
        raise UnusableError(f"it belongs to user {status.st_uid}")
