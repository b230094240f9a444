"""The report in a terminal, or in a pipe: plain text then, without colors."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trtbuild.report.sections import sections, verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from trtbuild.report.document import Report
    from trtbuild.report.sections import Section

_PIPE_COLUMNS = 100
_LONGEST_WORD = 18  # an architecture's name; a longer word is folded where space is short

_STYLES = {
    "passed": "green",
    "equal": "green",
    "FAILED": "bold red",
    "skipped": "yellow",
    "says nothing": "yellow",
    "cached": "dim",
    "chosen": "bold green",
}


def print_report(report: Report, out: TextIO) -> None:
    """Write the report to ``out``: as wide as the terminal, or 100 columns into a pipe."""
    _print(partial(_draw, report), out)


def print_section(section: Section, out: TextIO) -> None:
    """Write one section to ``out``, as wide as :func:`print_report` does."""
    _print(partial(_draw_section, section), out)


def to_text(report: Report, width: int) -> str:
    """Return the report as plain text, no line longer than ``width`` columns."""
    return _text(partial(_draw, report), width)


def _print(draw: Callable[[Console], None], out: TextIO) -> None:
    if out.isatty():
        draw(Console(file=out, markup=False, highlight=False, emoji=False))
    else:
        # A pipe in another encoding than UTF-8 has no lines to draw with.
        encoding = out.encoding or "utf-8"
        out.write(_text(draw, _PIPE_COLUMNS).encode(encoding, "replace").decode(encoding))


def _text(draw: Callable[[Console], None], width: int) -> str:
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        color_system=None,
        force_terminal=False,
        markup=False,
        highlight=False,
        emoji=False,
    )
    draw(console)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _draw(report: Report, console: Console) -> None:
    source = report.source
    digest = f" ({source.digest[:12]})" if source.digest else ""
    console.print(Text(f"trtbuild: {report.recipe}, from {source.framework}{digest}", "bold"))
    for section in sections(report):
        console.print()
        _draw_section(section, console)
    console.print()
    ending = verdict(report) + (" (full cache hit)" if report.full_cache_hit else "")
    console.print(Text(ending, "bold green" if report.passed else "bold red"))


def _draw_section(section: Section, console: Console) -> None:
    console.print(Text(section.title, "bold cyan"))
    if section.rows:
        console.print(_table(section))
    for note in section.notes:
        indent = len(note) - len(note.lstrip()) + 2
        for line in Text(note.lstrip()).wrap(console, console.width - indent):
            console.print(Text(" " * indent) + line)


def _table(section: Section) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_edge=False,
        header_style="",
    )
    for index, column in enumerate(section.columns):
        words = " ".join(row[index] for row in section.rows).split()
        table.add_column(
            column.name,
            justify="right" if column.numeric else "left",
            min_width=min(_LONGEST_WORD, max(map(len, words), default=0)),
            no_wrap=column.numeric,
            overflow="fold",
        )
    for row in section.rows:
        table.add_row(*(Text(cell, _STYLES.get(cell, "")) for cell in row))
    return table
