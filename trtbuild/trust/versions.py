"""Ranges of library versions, as a policy writes them: ``>=11.0.0,<12``."""

from __future__ import annotations

import re

_CLAUSE = re.compile(r"(>=|<=|==|<|>)\s*([0-9]{1,9}(?:\.[0-9]{1,9}){0,5})")
_NUMBERS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,7}")


def check_range(text: str) -> str:
    """Return ``text``; a ValueError says that it is no range."""
    _clauses(text)
    return text


def contains(text: str, version: str) -> bool:
    """Tell whether ``version`` is in the range ``text``.

    Versions are compared number by number, missing ones being 0. A version with letters
    (``1.2rc1``), or one longer than any is, is in no range: nobody can tell what is in it.
    """
    found = _NUMBERS.fullmatch(version)
    return found is not None and all(
        _holds(sign, _padded(version), _padded(bound)) for sign, bound in _clauses(text)
    )


def _holds(sign: str, version: tuple[int, ...], bound: tuple[int, ...]) -> bool:
    if sign == "==":
        return version == bound
    if sign.startswith(">"):
        return version > bound or (sign == ">=" and version == bound)
    return version < bound or (sign == "<=" and version == bound)


def _padded(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in version.split(".")]
    return (*numbers, *[0] * (8 - len(numbers)))


def _clauses(text: str) -> list[tuple[str, str]]:
    clauses = [_CLAUSE.fullmatch(part.strip()) for part in text.split(",")]
    found = [(each[1], each[2]) for each in clauses if each]
    if len(found) != len(clauses):
        message = f"{text!r} is no range of versions, such as '>=11.0.0,<12'"
        raise ValueError(message)
    return found
