"""Every reason for which an engine is refused before a runtime sees it, each with its code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.errors import TrustError

if TYPE_CHECKING:
    from collections.abc import Mapping

SHOWN_DIGITS = 12
"""Of a digest in a message."""

CODES: Mapping[str, str] = {
    "T01": "the policy cannot be used: unreadable, writable by others, or wrong",
    "T02": "the lockfile pins another engine, or cannot be used",
    "T03": "a statement's envelope is malformed, too large, or has too many signatures",
    "T04": "too few valid signatures of keys that are trusted for this model and role",
    "T05": "a signed statement is malformed or of an unknown type",
    "T06": "an older release than one that was loaded before",
    "T07": "the release has expired, is too old, or is from the future",
    "T08": "the record, key or target is not the one that was signed or asked for",
    "T09": "the provenance is missing or not what the policy expects",
    "T10": "the gates are missing, failed, or not those that the policy expects",
    "T11": "the engine carries code or plugins that are not allowed",
    "T12": "the engine is not for this machine, or its library's version is not allowed",
    "T13": "the engine's bytes are not those that were signed",
    "T14": "the engine's bytes do not look like an engine, or hide a program",
    "T15": "the engine failed its first load, in a child, or is not what its manifest says",
    "T16": "the key or the engine was revoked",
    "T17": "the engine is unsigned",
    "T18": "the memory of what was loaded before cannot be used",
}
"""The codes are a contract: a meaning may be made clearer, never moved to another code."""


def refusal(code: str, problem: str, expected: str, remedy: str) -> TrustError:
    """Return the error of the check ``code``: what is wrong, what was expected, what to do."""
    if code not in CODES:
        message = f"no check has the code {code!r}"
        raise ValueError(message)
    return TrustError(f"{problem}: expected {expected}. {remedy}", code)
