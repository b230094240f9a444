"""The process that builds one engine and may die: ``python -m trtbuild.backends.child JOB``.

It starts itself again once, because the stack of a process takes its size when a program
starts: TensorRT's parser recurses once per node of a chain and dies of 3,000 nodes on 8 MiB.
The second start sets the limits, builds, and leaves its outcome in ``outcome.json``
beside the job. What it is doing at any moment stands in ``progress`` there, for the case that
it dies.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.backends import backend, limits
from trtbuild.backends.diagnosis import MEMORY_WORDS, NO_ROOM
from trtbuild.backends.job import (
    PROGRESS,
    Failure,
    OutOfMemory,
    Success,
    decode_job,
    encode,
)
from trtbuild.errors import StoreError, TrtbuildError

if TYPE_CHECKING:
    from trtbuild.backends.job import Job, Outcome

_AGAIN = "--with-raised-stack"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FILE_BYTES = 64 << 30
"""The largest engine that was met has 14 GB."""

_OPEN_FILES = 4096
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> int:
    """Build the job in the file that ``arguments`` name; 0 when an outcome was written."""
    path = Path(arguments[-1])
    if _AGAIN not in arguments:
        _raise_stack()
        command = [sys.executable, "-m", "trtbuild.backends.child", _AGAIN, str(path)]
        os.execv(sys.executable, command)  # noqa: S606  our own interpreter and arguments
    job = decode_job(path.read_bytes())
    _die_with_parent(job.parent_pid)
    _limit(job)
    _follow_progress(path.with_name("progress"))
    outcome = encode(_build(job))
    try:
        path.with_name("outcome.json").write_bytes(outcome)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        sys.stdout.write(f"{len(outcome)} bytes to write, {_free_bytes(path.parent)} free\n")
        return NO_ROOM
    return 0


def _build(job: Job) -> Outcome:
    request = job.request
    try:
        record = backend(request.target.backend).build(request)
    except TrtbuildError as error:
        if job.memory_bytes and any(word in str(error) for word in MEMORY_WORDS):
            return OutOfMemory(detail=str(error))
        return Failure(error=type(error).__name__, message=str(error))
    except MemoryError as error:
        return OutOfMemory(detail=str(error) or "MemoryError")
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        message = (
            f"{request.target}: the engine cannot be written: {error.strerror}, "
            f"{_free_bytes(request.out.parent)} bytes free. Free space on the store's file "
            "system, or give another folder with --store"
        )
        return Failure(error=StoreError.__name__, message=message)
    return Success(record=record)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _limit(job: Job) -> None:
    """Bound what the build may use; a limit that is lower already stays."""
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: job.processor_s,
        resource.RLIMIT_FSIZE: _FILE_BYTES,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
    }
    if job.memory_bytes:
        wanted[resource.RLIMIT_AS] = job.memory_bytes
    limits.bound(wanted)


def _raise_stack() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))


def _die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when the one that waits for it is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if parent and os.getppid() != parent:
        sys.exit(1)


class _LastLine(logging.Handler):
    """Keeps the last message in a file, in place, so that it outlives a crash."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage().encode("utf-8", "replace")
        try:
            os.pwrite(self._file, line, 0)
            os.ftruncate(self._file, len(line))
        except OSError as error:  # a full disk is told by what has to be written
            if error.errno not in _NO_ROOM:
                raise


def _follow_progress(path: Path) -> None:
    PROGRESS.setLevel(logging.DEBUG)
    PROGRESS.propagate = False
    PROGRESS.addHandler(_LastLine(path))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
