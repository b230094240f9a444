"""Which nodes a name or a shell pattern of a recipe means."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def fitting(names: Collection[str], pattern: str) -> list[str]:
    """Return the one of ``names`` that is ``pattern`` letter by letter, or those that fit it.

    The name counts first: exporters write ``[``, ``]`` and ``*`` into names.
    """
    if pattern in names:
        return [pattern]
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def fitting_any(names: Collection[str], patterns: Iterable[str]) -> frozenset[str]:
    """Return the ``names`` that one of ``patterns`` means."""
    known = frozenset(names)
    return frozenset(name for pattern in patterns for name in fitting(known, pattern))
