"""Files that a confined child left in its folder, opened as a stranger's.

The child can be taken over by the model that it parses, and its folder is where it can reach
out of its sandbox: a link there names a file that only its parent may read, a FIFO makes who
opens it wait. What is opened here is looked at once it is open, and used by its descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LINK_OR_SOCKET = (errno.ELOOP, errno.ENXIO)
_MODE = 0o600


class OddFileError(Exception):
    """What is there is no plain file of its own; the text says which file, and what it is."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int | None]:
    """Lend a descriptor of the file, ``None`` where there is none.

    Raises:
        OddFileError: it is a link, a FIFO or the like, or has a second name elsewhere.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        if error.errno not in _LINK_OR_SOCKET:
            raise OddFileError(f"'{path.name}' cannot be opened: {error.strerror}") from error
        raise OddFileError(f"'{path.name}' is a link or a socket") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OddFileError(f"'{path.name}' is not a regular file")
        if status.st_nlink != 1:
            raise OddFileError(f"'{path.name}' has {status.st_nlink} names")
        yield descriptor
    finally:
        os.close(descriptor)


def content(path: Path, limit_bytes: int) -> bytes | None:
    """Return the first ``limit_bytes`` bytes of the file and one more if it has more.

    ``None`` where there is none.

    Raises:
        OddFileError: it is no plain file of its own.
    """
    with opened(path) as descriptor:
        if descriptor is None:
            return None
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit_bytes + 1)


def publish(path: Path, out: Path) -> None:
    """Give the file the name ``out``, on the same file system.

    The name is given to what was looked at, whatever has its path by then.

    Raises:
        OddFileError: there is none, or it is no plain file of its own.
        OSError: the name cannot be given.
    """
    with opened(path) as descriptor:
        if descriptor is None:
            raise OddFileError(f"there is no '{path.name}'")
        os.fchmod(descriptor, _MODE)
        out.unlink(missing_ok=True)
        folder = os.open(out.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # With a folder's descriptor Python calls linkat, which follows this link.
            file = f"/proc/self/fd/{descriptor}"
            os.link(file, out.name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)
