"""Reading: open what cannot be redirected, and look at it before anybody uses a byte.

Bytes are read into private memory and hashed there. Hashing a mapped file and handing over the
same mapping would check one content and use another. What is large is hashed by a second thread
while this one reads on: copying into fresh memory takes nearly as long as SHA-256 does.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import queue
import stat
import threading
from typing import TYPE_CHECKING

from trtbuild.engine import Value
from trtbuild.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK_BYTES = 1 << 20
_LARGE_BYTES = 8 << 20
"""From here on a second thread is worth its start (0.1 ms)."""


class BlobLostError(StoreError):
    """A blob is missing or failed verification: asking for its record again is a miss.

    ``reason`` is what was found, without what to do: that depends on who asks.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class Content(Value, frozen=True, kw_only=True):
    """What was found: bytes, or in ``fault`` why they are not to be used.

    ``file_id`` is (device, inode). ``data`` is empty where a fault was seen, and where only the
    digest was asked for.
    """

    data: bytes
    sha256: str
    fault: str
    file_id: tuple[int, int]


def read_file(path: Path, limit_bytes: int) -> Content | None:
    """Return the content of a published file of at most ``limit_bytes``, None where none is.

    Raises:
        OSError: it may be there, but cannot be read: that is no miss.
    """
    return _read(path, limit_bytes, keep=True)


def digest_file(path: Path, limit_bytes: int) -> Content | None:
    """Return :func:`read_file`'s answer without the bytes, in constant memory."""
    return _read(path, limit_bytes, keep=False)


def file_fault(path: Path, size_bytes: int) -> Content | None:
    """Return what is wrong with a published file by its inode alone; None where it is missing.

    ``fault`` is empty where owner, mode and size are as published.
    """
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    fault = _status_fault(status)
    if not fault and status.st_size != size_bytes:
        fault = f"it has {status.st_size} bytes, published were {size_bytes}"
    return Content(data=b"", sha256="", fault=fault, file_id=_file_id(status))


def _read(path: Path, limit_bytes: int, *, keep: bool) -> Content | None:
    # O_NONBLOCK: opening a FIFO that somebody put there must not hang.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise
        return file_fault(path, 0)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        fault = _status_fault(status)
        if not fault and status.st_size > limit_bytes:
            fault = f"it has {status.st_size} bytes, at most {limit_bytes} are read"
        data, sha256 = b"", ""
        if not fault:
            data, sha256 = _hashed(file, status.st_size, keep=keep)
        if keep and len(data) > limit_bytes:
            data, fault = b"", f"it grew to {len(data)} bytes while it was read"
    return Content(data=data, sha256=sha256, fault=fault, file_id=_file_id(status))


def _hashed(file: io.FileIO, size_bytes: int, *, keep: bool) -> tuple[bytes, str]:
    """Return what ``file`` contains, if it is to be kept, and its digest."""
    if keep and size_bytes >= _LARGE_BYTES:
        return _hashed_meanwhile(file, size_bytes)
    total = hashlib.sha256()
    data = b""
    if keep:
        data = file.read() or b""
        total.update(data)
    else:
        room = memoryview(bytearray(_CHUNK_BYTES))
        while count := file.readinto(room):
            total.update(room[:count])
    return data, total.hexdigest()


def _hashed_meanwhile(file: io.FileIO, size_bytes: int) -> tuple[bytes, str]:
    """Return all of a large file, hashed in memory by a second thread while it is read on.

    The pages of ``bytes(n)`` are not touched before they are read into, and BytesIO hands the
    same object out again: the content is written once and never copied.
    """
    total = hashlib.sha256()
    chunks: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()

    def hash_chunks() -> None:
        while (chunk := chunks.get()) is not None:
            total.update(chunk)
            chunk.release()

    room = io.BytesIO(bytes(size_bytes))
    done = 0
    hasher = threading.Thread(target=hash_chunks, name="trtbuild-hash")
    hasher.start()
    with room.getbuffer() as memory:
        try:
            while count := file.readinto(memory[done : done + _CHUNK_BYTES]):
                chunks.put(memory[done : done + count])
                done += count
        finally:
            chunks.put(None)
            hasher.join()
    rest = file.read() or b""  # it has grown
    total.update(rest)
    data = room.getvalue()
    if done < size_bytes or rest:
        data = data[:done] + rest
    return data, total.hexdigest()


def _status_fault(status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if status.st_uid not in (os.geteuid(), 0):
        return f"it belongs to user {status.st_uid}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "other users may write to it"
    return ""


def _file_id(status: os.stat_result) -> tuple[int, int]:
    return (status.st_dev, status.st_ino)
