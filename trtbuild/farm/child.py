"""One recipe in a process of its own, which user code and frameworks may take down.

The child prints its report on stdout. Both of its streams are files, not pipes, so that no
process which it leaves behind can hold up the night.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

from trtbuild.engine import Value
from trtbuild.errors import BuildError, GateError, StoreError
from trtbuild.farm.matrix import Failure
from trtbuild.report.document import from_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trtbuild.report.document import Report

_POLL_SECONDS = 0.2
_LAST_WORDS_SECONDS = 3
_KEPT_LINES = 20
_READ_BYTES = 1 << 20

_CLOCK = re.compile(r"^\[ *\d+\.\d s\] ")
_ERROR = re.compile(r"^error: ", re.MULTILINE)


class _Ending(Value, frozen=True, kw_only=True):
    """How a child ended; ``returncode`` as in ``subprocess``: negative for a signal."""

    returncode: int
    output: bytes
    log: str


def build(path: Path, store: str | Path, say: Callable[[str], None]) -> Report | Failure:
    """Return the report of a recipe, built in a child, or why there is none.

    ``say`` is told every line that the child prints to stderr, without its clock.
    """
    arguments = ["engine", str(path), "--json", "--store", str(store)]
    ending = _run([sys.executable, "-m", "trtbuild", *arguments], say)
    if ending.returncode in (0, GateError.exit_code):
        try:
            return from_json(ending.output)
        except StoreError as error:
            message = f"{path}: its process printed no report: {error}\n{_last(ending.log)}"
            return Failure(message=message, exit_code=1)
    return _failure(path, ending)


def _run(command: list[str], say: Callable[[str], None]) -> _Ending:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as log:
        child = subprocess.Popen(  # noqa: S603  our own interpreter and arguments
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=log
        )
        try:
            told = 0
            while _is_running(child):
                told = _tell(log.fileno(), told, say)
            _tell(log.fileno(), told, say)
        finally:
            _end(child)
        return _Ending(
            returncode=child.returncode,
            output=_read(output.fileno(), 0),
            log=_read(log.fileno(), 0).decode(errors="replace"),
        )


def _is_running(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _end(child: subprocess.Popen[bytes]) -> None:
    """Give a child time to end its builders when Ctrl-C, which it saw too, ends the night."""
    if child.poll() is not None:
        return
    try:
        child.wait(_LAST_WORDS_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _tell(log: int, start: int, say: Callable[[str], None]) -> int:
    """Say the whole lines that were added since ``start``; return where they end."""
    added, newline, _ = _read(log, start).rpartition(b"\n")
    for line in added.decode(errors="replace").splitlines():
        say(_CLOCK.sub("", line))
    return start + len(added) + len(newline)


def _read(file: int, start: int) -> bytes:
    """Return a file's bytes from ``start``; the offset, shared with the child, stays."""
    pieces = []
    while piece := os.pread(file, _READ_BYTES, start):
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)


def _failure(path: Path, ending: _Ending) -> Failure:
    if ending.returncode < 0:
        reason = signal.strsignal(-ending.returncode) or f"signal {-ending.returncode}"
        message = (
            f"{path}: its process was ended by: {reason}. A framework or library that crashes "
            f"does this, or a system out of memory: 'trtbuild engine {path}' runs it alone"
        )
        return Failure(
            message=f"{message}\n{_last(ending.log)}".strip(), exit_code=BuildError.exit_code
        )
    said = list(_ERROR.finditer(ending.log))
    if said:
        message = ending.log[said[-1].end() :]
    else:
        message = f"{path}: its process ended with {ending.returncode}\n{_last(ending.log)}"
    return Failure(message=message.strip(), exit_code=ending.returncode)


def _last(log: str) -> str:
    return "\n".join(log.splitlines()[-_KEPT_LINES:])
