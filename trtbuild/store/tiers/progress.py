"""How far a transfer is, in words: ``pull engine 1a2b from s3://…: 8.4 MB of 62.9 MB``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.store.sizes import shown_size

if TYPE_CHECKING:
    from collections.abc import Callable

_TOLD_BYTES = 1_000_000
"""What is smaller is there before anybody wonders."""


class Progress:
    """Counts the bytes of one transfer, and says them where it is not a small one."""

    def __init__(self, say: Callable[[str], None], what: str, total_bytes: int) -> None:
        self._say, self._what, self._total, self._done = say, what, total_bytes, 0

    def add(self, count: int) -> None:
        """Count ``count`` bytes that went or came."""
        self._done += count
        total = max(self._total, self._done)
        if total >= _TOLD_BYTES:
            self._say(f"{self._what}: {shown_size(self._done)} of {shown_size(total)}")
