"""TOML that is looked at before it is parsed: parsers recurse, and die of deep nesting."""

from __future__ import annotations

import re
import sys

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_DEPTH = 16
"""Of brackets, and of a name's dotted parts; a policy needs 3 of either."""

_TEXT = re.compile(
    r'"""(?:[^"\\]|\\.?|"(?!""))*(?:""")?'
    r"|'''(?:[^']|'(?!''))*(?:''')?"
    r'|"(?:[^"\\\n]|\\.?)*"?'
    r"|'[^'\n]*'?"
    r"|#[^\n]*",
    re.DOTALL,
)
"""Strings and comments. Each matches even where it has no end, so that no place is looked at
again and again."""

_MARKS = re.compile(r"[\[\]{}.,=\n]")


def parse(data: bytes) -> dict[str, object]:
    """Return the tables of a file.

    Raises:
        ValueError: it is no TOML in UTF-8, or nested deeper than anything that we write.
    """
    text = data.decode("utf-8")
    _check_depth(_TEXT.sub("", text))
    return tomllib.loads(text)


def _check_depth(text: str) -> None:
    depth = dots = 0
    for mark in _MARKS.findall(text):
        dots = dots + 1 if mark == "." else 0
        if mark in "[{":
            depth += 1
        elif mark in "]}":
            depth = max(0, depth - 1)
        if max(depth, dots) > MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH} levels"
            raise ValueError(message)
