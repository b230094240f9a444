"""What commands print: progress on stderr, the report on stdout, and their exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import time
from typing import TYPE_CHECKING

import typer

from trtbuild.errors import UsageError
from trtbuild.quantization.policy import QUANTIZED, word_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from trtbuild.report.document import Report


_TERMINAL_PAUSE_S = 0.1
_LOG_PAUSE_S = 30.0
_BAR_CHARACTERS = 24
_COUNT = re.compile(r": ([\d.]+)(?: ([kMGT]?)B)? of ([\d.]+)(?: ([kMGT]?)B)?(?: |$)")
_PREFIXES = ("", "k", "M", "G", "T")


def speaker(*, quiet: bool) -> Callable[[str], None]:
    """Return a function that prints what begins to stderr, with the seconds since the start.

    A line that only counts on (``calibrate: 64 of 512 samples``, or bytes) replaces the last
    on a terminal, with a bar, ten times a second at most. Elsewhere it is printed twice a
    minute.
    """
    started = time.monotonic()
    terminal = sys.stderr.isatty()
    pause_s = _TERMINAL_PAUSE_S if terminal else _LOG_PAUSE_S
    counting, printed = "", 0.0

    def say(text: str) -> None:
        nonlocal counting, printed
        if quiet:
            return
        head, colon, _ = text.partition(": ")
        same = bool(colon) and head == counting
        now = time.monotonic()
        if same and now - printed < pause_s and not _is_done(text):
            return
        counting, printed = head if colon else "", now
        back = "\033[1A\033[2K" if same and terminal else ""
        bar = _bar(text) if terminal else ""
        typer.echo(f"{back}[{now - started:6.1f} s] {text}{bar}", err=True)

    return say


def _fraction(text: str) -> float | None:
    """Return how much of ``64 of 512`` or ``8 kB of 2 MB`` is done, None without a count."""
    found = _COUNT.search(text)
    if found is None:
        return None
    done, total = (
        float(found[place]) * 1000 ** _PREFIXES.index(found[place + 1] or "")
        for place in (1, 3)
    )
    return done / total if total else 1.0


def _is_done(text: str) -> bool:
    return _fraction(text) == 1.0


def _bar(text: str) -> str:
    fraction = _fraction(text)
    if fraction is None:
        return ""
    done = round(_BAR_CHARACTERS * min(fraction, 1.0))
    return f"  [{'#' * done}{'.' * (_BAR_CHARACTERS - done)}]"


@contextlib.contextmanager
def writing(path: Path, option: str) -> Iterator[None]:
    """Tell a failure to write ``path``, which ``option`` named, in one sentence.

    Raises:
        UsageError: instead of any OSError of the body.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{option} {path}: cannot be written: {error.strerror or error}. Give another path"
        ) from error


def write_whole(path: Path, text: str, option: str) -> None:
    """Write a file that others may read at any time: all of it, or it stays as it was.

    Raises:
        UsageError: it cannot be written.
    """
    real = path.resolve()
    draft = real.with_name(f".{real.name}.{os.urandom(8).hex()}")
    with writing(path, option):
        try:
            with draft.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if real.exists():
                draft.chmod(stat.S_IMODE(real.stat().st_mode))
            draft.replace(real)
        finally:
            draft.unlink(missing_ok=True)


def prepare(path: Path | None, option: str) -> None:
    """Make the folder of a file to be written, and refuse before any work if it cannot be.

    Raises:
        UsageError: the folder cannot be made or written to, or the path is a folder.
    """
    if path is None:
        return
    with writing(path, option):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def print_json(value: object) -> None:
    """Print a plain value as one indented JSON document."""
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def write_policy(report: Report, path: Path) -> None:
    """Write the policies of a report as one file that a recipe can name."""
    from trtbuild.report.policy_text import policy_text

    asked = report.engines[0].precision_requested
    if asked not in QUANTIZED:
        raise UsageError(
            f"--save-policy {path}: nothing is quantized in {asked}: ask for "
            f"{' or '.join(QUANTIZED)}"
        )
    text = policy_text(report.recipe, word_of(asked), report.policies)
    with writing(path, "--save-policy"):
        path.write_text(text, encoding="utf-8")


def finish(report: Report, *, as_json: bool, markdown: Path | None) -> None:
    """Print a report and leave with its exit code."""
    from trtbuild.report.document import to_json

    if markdown is not None:
        from trtbuild.report.markdown import to_markdown

        with writing(markdown, "--markdown"):
            markdown.write_text(to_markdown(report), encoding="utf-8")
    if as_json:
        typer.echo(to_json(report), nl=False)
    else:
        from trtbuild.report.terminal import print_report

        print_report(report, sys.stdout)
    raise typer.Exit(report.exit_code)
