"""The report as GitHub-flavored Markdown: equal reports give equal bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from trtbuild.report.sections import sections, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trtbuild.report.document import Report
    from trtbuild.report.sections import Section

_SPECIAL = re.compile(r"[\\`*\[\]<>|#]|(?<!\w)_|_(?!\w)")
"""What has a meaning in Markdown; an underscore within a word (``sm_89``) has none."""


def to_markdown(report: Report) -> str:
    """Return the report as Markdown, with a newline at its end."""
    digest = f" (`{report.source.digest}`)" if report.source.digest else ""
    hit = " (full cache hit)" if report.full_cache_hit else ""
    parts = [
        f"# {_escaped(report.recipe)}",
        f"**{verdict(report)}**{hit}",
        f"Source: {_escaped(report.source.framework)}{digest}",
    ]
    parts += [block for section in sections(report) for block in _blocks(section)]
    return "\n\n".join(parts) + "\n"


def page_to_markdown(heading: str, parts: Sequence[Section], ending: str) -> str:
    """Return any page as Markdown: heading, verdict, sections, with a newline at its end."""
    blocks = [block for section in parts for block in _blocks(section)]
    return "\n\n".join([f"# {_escaped(heading)}", f"**{_escaped(ending)}**", *blocks]) + "\n"


def _blocks(section: Section) -> list[str]:
    blocks = [f"## {_escaped(section.title)}"]
    if section.rows:
        names = [column.name for column in section.columns]
        rules = ["---:" if column.numeric else ":---" for column in section.columns]
        rows = [[_escaped(cell) for cell in row] for row in section.rows]
        blocks.append("\n".join(f"| {' | '.join(cells)} |" for cells in (names, rules, *rows)))
    if section.notes:
        blocks.append("\n".join(_bullet(note) for note in section.notes))
    return blocks


def _bullet(note: str) -> str:
    """Return a list item; a note that is indented belongs to the one above it."""
    text = note.lstrip()
    return f"{'  ' if len(note) > len(text) else ''}- {_escaped(text)}"


def _escaped(text: str) -> str:
    """Return ``text`` so that GitHub shows it as it is, on one line."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))
