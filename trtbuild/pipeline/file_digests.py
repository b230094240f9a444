"""Digests of large files, remembered by what their file system says of them.

A full hit of a model of 1 GiB would otherwise hash it at every call. A file counts as the one
that was hashed where device, inode, size and both times of change are the same: the time of a
status change is set by the kernel, and no program can set it back. Small files are always
hashed. The rules for what is remembered are those of Git's index and of ccache's inode cache:

* what changed less than two seconds before is not, since a second change could fall into the
  same tick of the clock;
* what is dirty in memory is written first, so that a later write through a mapping is a change;
* file systems on which times do not tell of every write (tmpfs, network and FUSE) do not count.

``TRTBUILD_FILE_MEMO=0`` hashes every file at every call.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.canonical import digest, sha256_open
from trtbuild.engine import Value
from trtbuild.errors import StoreError
from trtbuild.sources import dependencies
from trtbuild.store import make_record

if TYPE_CHECKING:
    from trtbuild.store import Store

SWITCH = "TRTBUILD_FILE_MEMO"
LARGE_BYTES = 8 << 20
"""Below, hashing takes as long as the five milliseconds that a whole key may take."""

_SETTLED_NS = 2_000_000_000
_FILE_SYSTEMS = frozenset({"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "xfs", "zfs"})
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class _State(Value, frozen=True, kw_only=True):
    """What tells one state of a file from another; device numbers hold until the next boot."""

    boot: str
    device: int
    inode: int
    size: int
    changed_ns: int
    status_changed_ns: int


class _Hashed(Value, frozen=True, kw_only=True):
    """The sha256 of a file in one state."""

    sha256: str


def file_digest(store: Store, path: str) -> str:
    """Return the sha256 of a file's content, ``ABSENT`` where there is no such file.

    A large file that is in a remembered state is not read.
    """
    try:
        found = os.stat(path)  # noqa: PTH116  on the way of every hit, for every file
    except (OSError, ValueError):
        return dependencies.ABSENT
    boot = _boot() if found.st_size >= LARGE_BYTES and stat.S_ISREG(found.st_mode) else ""
    if not boot:
        return dependencies.file_digest(path)
    state = _state(boot, found)
    record = store.here.get("file", digest("file/v1", state), _Hashed)
    return record.read(_Hashed).sha256 if record else _hashed(store, path, boot)


def _boot() -> str:
    """Return what names this run of the kernel, empty where nothing is to be remembered."""
    if os.environ.get(SWITCH, "").lower() in ("0", "false", "no"):
        return ""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def _state(boot: str, found: os.stat_result) -> _State:
    return _State(
        boot=boot,
        device=found.st_dev,
        inode=found.st_ino,
        size=found.st_size,
        changed_ns=found.st_mtime_ns,
        status_changed_ns=found.st_ctime_ns,
    )


def _hashed(store: Store, path: str, boot: str) -> str:
    """Hash a file, and remember its digest where its state will tell of every later change."""
    try:
        with Path(path).open("rb") as file:
            before = _state(boot, os.fstat(file.fileno()))
            changed_ns = max(before.changed_ns, before.status_changed_ns)
            settled = changed_ns < time.time_ns() - _SETTLED_NS
            tells = settled and _times_tell(file.fileno())
            sha256 = sha256_open(file)
            after = _state(boot, os.fstat(file.fileno()))
    except OSError:
        return dependencies.ABSENT
    if tells and after == before:
        record = make_record("file", digest("file/v1", after), after, _Hashed(sha256=sha256))
        with contextlib.suppress(StoreError):  # a full disk: it is hashed again next time
            store.here.put(record, _Hashed)
    return sha256


def _times_tell(number: int) -> bool:
    """Tell whether an open file is clean, on a file system that dates every write to it."""
    try:
        os.fsync(number)
        told = Path(f"/proc/self/fdinfo/{number}").read_text().splitlines()
        mount = next(line.split()[1] for line in told if line.startswith("mnt_id:"))
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
        line = next(each for each in lines if each.split(" ", 1)[0] == mount)
    except (OSError, StopIteration):
        return False
    return line.partition(" - ")[2].split()[0] in _FILE_SYSTEMS
