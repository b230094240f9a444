"""Things that one caller uses at a time, lent in the order in which callers came."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from trtbuild.errors import MissingBackendError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")

_CLOSED = "the session is closed: load the engine again"


class NoRoomError(MissingBackendError):
    """There is no memory for one more; those that exist can serve, if there are any."""


class _Turn(Generic[T]):
    """One waiting caller; ``granted`` is what it got, empty where it must ask again."""

    def __init__(self) -> None:
        self.granted: list[T] = []
        self._signal = threading.Lock()
        self._signal.acquire()

    def wait(self) -> None:
        self._signal.acquire()

    def wake(self) -> None:
        self._signal.release()


class Pool(Generic[T]):
    """At most ``limit`` things, each made when it is first needed.

    A caller that has to wait is served before any that comes later. Where there is
    no room for one more (:class:`NoRoomError`), the limit falls to what exists.
    """

    def __init__(self, make: Callable[[], T], limit: int) -> None:
        self._make = make
        self._changed = threading.Condition(threading.Lock())
        self._idle: list[tuple[Hashable, T]] = []
        self._turns: deque[_Turn[T]] = deque()
        self._closed = False
        self.limit = limit
        self.made = 0
        self.in_use = 0
        self.waits = 0
        self.waited_s = 0.0

    def take(self, last: Hashable = None) -> T:
        """Return a thing that nobody else has, the one given back with ``last`` if it is free.

        Raises:
            UsageError: the pool is closed.
            NoRoomError: there is no room for a first one.
        """
        turn: _Turn[T] | None = None
        while True:
            with self._changed:
                found = self._free(last, turn)
                if found:
                    return found[0]
                make = self._reserve()
                if not make:
                    turn = self._queue(turn)
            if make:
                made = self._made()
                if made:
                    return made[0]
                turn = _Turn()  # it came before those that wait by now
                continue
            assert turn is not None  # noqa: S101  set where nothing was made
            start = time.perf_counter()
            turn.wait()
            with self._changed:
                self.waited_s += time.perf_counter() - start

    def _queue(self, turn: _Turn[T] | None) -> _Turn[T]:
        """Return a turn at the end of the queue, or at its head for one who had a turn."""
        self.waits += 1
        fresh: _Turn[T] = _Turn()
        if turn is None:
            self._turns.append(fresh)
        else:
            self._turns.appendleft(fresh)
        return fresh

    def give(self, item: T, last: Hashable = None) -> None:
        """Give back what :meth:`take` returned, used last for what ``last`` names."""
        with self._changed:
            self.in_use -= 1
            if self._turns and not self._closed:
                self._grant(self._turns.popleft(), item)
            else:
                self._idle.append((last, item))
                self._changed.notify_all()

    def fill(self, prepare: Callable[[T], Hashable]) -> None:
        """Make all that may exist, and call ``prepare`` on each that nobody uses.

        It returns what the thing was used for last. Waits for nobody.
        """
        with self._changed:
            items = [item for _, item in self._idle]
            self._idle.clear()
            self.in_use += len(items)
        try:
            while items or self._may_make():
                made = [items[0]] if items else self._made()
                items = items or made
                if made:
                    last = prepare(made[0])
                    self.give(items.pop(0), last)
        finally:
            for item in items:
                self.give(item)

    def close(self, dispose: Callable[[T], None], patience_s: float) -> bool:
        """Refuse new callers, dispose of everything as it comes back; say whether all did.

        Waits at most ``patience_s`` seconds for what is in use.
        """
        with self._changed:
            self._closed = True
            self.limit = 0
            while self._turns:
                self._turns.popleft().wake()
            done = self._changed.wait_for(lambda: self.in_use == 0, patience_s)
            items = [item for _, item in self._idle]
            self._idle.clear()
            self.made -= len(items)
        for item in items:
            dispose(item)
        return done

    def _grant(self, turn: _Turn[T], item: T) -> None:
        self.in_use += 1
        turn.granted.append(item)
        turn.wake()

    def _free(self, last: Hashable, turn: _Turn[T] | None) -> list[T]:
        """Return what the caller can have at once, as a list of one; empty if nothing."""
        if turn is not None and turn.granted:
            return turn.granted
        if self._closed:
            raise UsageError(_CLOSED)
        if not self._idle or (self._turns and turn is None):
            return []
        index = next((i for i, (key, _) in enumerate(self._idle) if key == last), -1)
        self.in_use += 1
        return [self._idle.pop(index)[1]]

    def _may_make(self) -> bool:
        with self._changed:
            return not self._closed and self._reserve()

    def _reserve(self) -> bool:
        """Count one more thing as made and in use, if one more may be."""
        room = self.made < self.limit
        self.made += room
        self.in_use += room
        return room

    def _made(self) -> list[T]:
        """Make one more; an empty list where there is no room for it, but others exist."""
        try:
            return [self._make()]
        except BaseException as error:
            with self._changed:
                self.made -= 1
                self.in_use -= 1
                self._changed.notify_all()
                full = isinstance(error, NoRoomError)
                if full and self.made:
                    self.limit = self.made  # those being made by now are counted too
                    return []
                if self._turns:
                    self._turns.popleft().wake()
            raise
