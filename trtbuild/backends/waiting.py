"""Waiting for a child that may print without end, take no input, or never end."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_KEPT_OUTPUT_BYTES = 64 << 10
_PIECE_BYTES = 64 << 10
_WATCH_S = 1.0


def until(
    child: subprocess.Popen[bytes],
    deadline: float,
    tick: Callable[[], None] = lambda: None,
    given: Sequence[bytes] = (),
) -> tuple[bytes, bool]:
    """Read what ``child`` prints until it ends; return the end of it, and whether in time.

    ``deadline`` is of :func:`time.monotonic`; ``tick`` is called about once a second. ``given``
    is its standard input, if that is a pipe; it may end before it took all of it.
    """
    kept = b""
    if child.stdout is None:
        message = "the child was started without a pipe"
        raise ValueError(message)
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        feed = _Feed(child, given, selector) if child.stdin else None
        while (left := deadline - time.monotonic()) > 0:
            ready = {each.fileobj for each, _ in selector.select(min(left, _WATCH_S))}
            if not ready:
                tick()
            if feed and child.stdin in ready:
                feed.give()
            if child.stdout not in ready:
                continue
            piece = os.read(child.stdout.fileno(), _PIECE_BYTES)
            if not piece:
                break
            kept = (kept + piece)[-_KEPT_OUTPUT_BYTES:]
        else:
            return kept, False
    try:
        child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return kept, False
    return kept, True


class _Feed:
    """Gives a child its standard input piece by piece, as it takes it."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        given: Sequence[bytes],
        selector: selectors.BaseSelector,
    ) -> None:
        if child.stdin is None:
            message = "the child was started without a pipe to it"
            raise ValueError(message)
        self._pipe = child.stdin
        self._left = [memoryview(each) for each in reversed(given) if each]
        self._selector = selector
        os.set_blocking(self._pipe.fileno(), False)
        selector.register(self._pipe, selectors.EVENT_WRITE)
        if not self._left:
            self._end()

    def give(self) -> None:
        """Write what the pipe takes now; close it after the last, or when nobody reads it."""
        try:
            taken = os.write(self._pipe.fileno(), self._left[-1][:_PIECE_BYTES])
        except BrokenPipeError:
            self._end()
            return
        self._left[-1] = self._left[-1][taken:]
        if not self._left[-1]:
            self._left.pop()
        if not self._left:
            self._end()

    def _end(self) -> None:
        self._left.clear()
        self._selector.unregister(self._pipe)
        self._pipe.close()
