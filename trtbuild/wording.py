"""Words that texts for people share."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return ``1 engine`` or ``2 engines``; the plural of ``noun`` ends in *s*."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
