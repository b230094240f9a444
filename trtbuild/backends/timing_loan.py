"""A timing cache on loan to a confined build, which must not write where others read.

The child gets a copy in its own folder, combines what it measured with it (as only TensorRT
can), and leaves the result there. What it left is looked at from the outside, for nobody but
TensorRT can read it, and becomes the cache as a whole.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from trtbuild.backends import leavings
from trtbuild.errors import BuildError

if TYPE_CHECKING:
    from trtbuild.backends.job import BuildRequest

MAX_BYTES = 256 << 20
"""A bound against a child that fills disks, no figure that was measured."""

_NAME = "timing-cache"
_PINNED = "pinned:"
_LOCK_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Loan:
    """The copy that a child works on, and what was in it before."""

    cache: Path
    copy: Path
    before: bytes
    is_pinned: bool


def lend(request: BuildRequest, folder: Path) -> Loan | None:
    """Copy the timing cache of ``request``, if it has one, into the child's ``folder``.

    Raises:
        BuildError: it is there, but cannot be read.
    """
    cache = request.timing_cache
    if cache is None:
        return None
    try:
        before = _content(cache)
    except OSError as error:
        raise BuildError(
            f"{cache}: the timing cache cannot be read: {error.strerror}: expected a file, or "
            "the name of a new one: correct --timing-cache"
        ) from error
    mode = str(dict(request.settings).get("timing_cache", ""))
    is_pinned = mode.startswith(_PINNED)
    loan = Loan(cache=cache, copy=folder / _NAME, before=before, is_pinned=is_pinned)
    if loan.before:
        loan.copy.write_bytes(loan.before)
    return loan


def take_back(loan: Loan) -> str:
    """Make what the child left the cache; return why that was not done, or an empty string.

    Where another build has replaced the cache meanwhile, the larger of both stays: it has more
    times. A build does not fail of its cache, and a pinned one never changes.
    """
    if loan.is_pinned:
        return ""
    try:
        left = leavings.content(loan.copy, MAX_BYTES) or b""
        if len(left) > MAX_BYTES:
            return _not_extended(loan, f"the build left more than {MAX_BYTES >> 20} MiB")
        if not left or left == loan.before:
            return ""
        with filelock.FileLock(f"{loan.cache}.lock", timeout=_LOCK_SECONDS):
            now = _content(loan.cache)
            if now == loan.before or len(left) > len(now):
                replace_whole(loan.cache, left)
    except (OSError, filelock.Timeout, leavings.OddFileError) as error:
        return _not_extended(loan, str(error))
    return ""


def _content(cache: Path) -> bytes:
    try:
        return cache.read_bytes()
    except FileNotFoundError:
        return b""


def _not_extended(loan: Loan, reason: str) -> str:
    return f"the timing cache {loan.cache} was not extended: {reason}"


def replace_whole(path: Path, content: bytes) -> None:
    """Write a file whole and durable under its name: data, then name, then folder."""
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except OSError:
        Path(draft).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
