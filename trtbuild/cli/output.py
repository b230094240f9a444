"""What commands print: progress on stderr, the report on stdout, and their exit code."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trtbuild.report.document import Report


def speaker(*, quiet: bool) -> Callable[[str], None]:
    """Return a function that prints what begins to stderr, with the seconds since the start.

    On a terminal a line that only counts on (``calibrate: 64 samples``) replaces the last.
    """
    started = time.monotonic()
    terminal = sys.stderr.isatty()
    counting = ""

    def say(text: str) -> None:
        nonlocal counting
        if quiet:
            return
        head, colon, _ = text.partition(": ")
        same = bool(colon) and head == counting
        if same and not terminal:
            return
        counting = head if colon else ""
        back = "\033[1A\033[2K" if same else ""
        typer.echo(f"{back}[{time.monotonic() - started:6.1f} s] {text}", err=True)

    return say


def print_json(value: object) -> None:
    """Print a plain value as one indented JSON document."""
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def finish(report: Report, *, as_json: bool, markdown: Path | None) -> None:
    """Print a report and leave with its exit code."""
    from trtbuild.report.document import to_json

    if markdown is not None:
        from trtbuild.report.markdown import to_markdown

        markdown.write_text(to_markdown(report), encoding="utf-8")
    if as_json:
        typer.echo(to_json(report), nl=False)
    else:
        from trtbuild.report.terminal import print_report

        print_report(report, sys.stdout)
    raise typer.Exit(report.exit_code)
