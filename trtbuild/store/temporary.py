"""Names of unpublished files, and the removal of those whose process is dead.

A name is ``<host>.<boot>-<pid namespace>.<pid>.<random>``: enough to tell, on the machine that
made it, whether its owner still runs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import time
from pathlib import Path

FOREIGN_AGE_S = 24 * 3600
"""An owner that cannot be asked (other host, boot or container) is dead after this silence."""

_NAME_PARTS = 4


def new_name() -> str:
    """Return a name that no other process, thread or call will use."""
    host, boot = _machine()
    return f"{host}.{boot}.{os.getpid()}.{os.urandom(8).hex()}"


def remove_orphans(folder: Path) -> int:
    """Delete what dead processes left in ``folder``; return how many entries that were."""
    removed = 0
    for entry in os.scandir(folder):
        if not _is_orphan(entry):
            continue
        # Another process may remove the same orphan at the same time; on a share it may be
        # another user's.
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                Path(entry.path).unlink()
        removed += 1
    return removed


def _is_orphan(entry: os.DirEntry[str]) -> bool:
    parts = entry.name.split(".")
    if len(parts) != _NAME_PARTS or not parts[2].isdigit():
        return False  # not named by us: not ours to delete
    if tuple(parts[:2]) == _machine():
        return not _is_alive(int(parts[2]))
    try:
        modified = entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return False
    return time.time() - modified > FOREIGN_AGE_S


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@functools.cache
def _machine() -> tuple[str, str]:
    """Return host, and boot with process namespace: where a process id has one meaning."""
    host = re.sub(r"[^A-Za-z0-9-]", "_", os.uname().nodename) or "_"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # not Linux
        return host, "unknown"
    return host, f"{boot}-{namespace}"
