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


def _nothing(_item: object) -> None:
    """Dispose of a thing that holds nothing."""


class Pool(Generic[T]):
    """At most ``limit`` things, each made when it is first needed.

    A caller that has to wait is served before any that comes later. Where there is
    no room for one more (:class:`NoRoomError`), the limit falls to what exists.
    ``dispose`` is called for each thing that nobody will use any more.
    """

    def __init__(
        self, make: Callable[[], T], limit: int, dispose: Callable[[T], None] = _nothing
    ) -> None:
        self._make = make
        self._dispose = dispose
        self._changed = threading.Condition(threading.Lock())
        self._discarding = threading.Lock()
        self._idle: list[tuple[Hashable, T]] = []
        self._turns: deque[_Turn[T]] = deque()
        self._closed = False
        self._emptied: list[Callable[[], None]] = []
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
            self._wait(turn)

    def _wait(self, turn: _Turn[T]) -> None:
        """Wait for a turn; one who stops waiting (Ctrl-C, a signal's handler) leaves it."""
        start = time.perf_counter()
        try:
            turn.wait()
        except BaseException:
            self._abandon(turn)
            raise
        with self._changed:
            self.waited_s += time.perf_counter() - start

    def _abandon(self, turn: _Turn[T]) -> None:
        with self._changed:
            if turn in self._turns:
                self._turns.remove(turn)
                return
            if not turn.granted:
                if self._turns:  # it was woken to try again: the next one does
                    self._turns.popleft().wake()
                return
        self.give(turn.granted.pop())

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
        """Give back what :meth:`take` returned, used last for what ``last`` names.

        What comes back to a closed pool is disposed of.
        """
        with self._changed:
            if not self._closed:
                self.in_use -= 1
                if self._turns:
                    self._grant(self._turns.popleft(), item)
                else:
                    self._idle.append((last, item))
                    self._changed.notify_all()
                return
        self._drop(item)

    def discard(self, item: T) -> bool:
        """Dispose of what :meth:`take` returned, if others exist, and say whether it is gone.

        For one that found no room to work in: fewer may find it. The limit falls with it.
        """
        with self._discarding:  # who comes second finds the room that the first one left
            with self._changed:
                if self.made <= 1 and not self._closed:
                    return False
                self.limit = min(self.limit, self.made - 1)
            self._drop(item)
        return True

    def fill(self, prepare: Callable[[T], Hashable]) -> None:
        """Make all that may exist, and call ``prepare`` on each that nobody uses.

        It returns what the thing was used for last. Waits for nobody. Things that ``prepare``
        finds no room for are disposed of, as long as there are others.
        """
        with self._changed:
            items = [item for _, item in self._idle]
            self._idle.clear()
            self.in_use += len(items)
        try:
            while items or self._may_make():
                if not items:
                    items = self._made()
                    continue
                try:
                    last = prepare(items[0])
                except NoRoomError:
                    if not self.discard(items[0]):
                        raise
                    del items[0]
                else:
                    self.give(items.pop(0), last)
        finally:
            for item in items:
                self.give(item)

    def close(self, patience_s: float, emptied: Callable[[], None]) -> None:
        """Refuse new callers, and dispose of everything as it comes back, then ``emptied``.

        Waits at most ``patience_s`` seconds for what is in use; what comes back later is
        disposed of then, by who gives it back.
        """
        with self._changed:
            first = not self._closed
            self._closed = True
            self.limit = 0
            while self._turns:
                self._turns.popleft().wake()
            items = [item for _, item in self._idle]
            self._idle.clear()
            if first:
                self._emptied.append(emptied)
        for item in items:
            self._dispose(item)
        with self._changed:
            self.made -= len(items)
            self._changed.wait_for(lambda: self.in_use == 0, patience_s)
        self._end()

    def _drop(self, item: T) -> None:
        """Dispose of a thing in use; the last one of a closed pool ends it."""
        try:
            self._dispose(item)
        finally:
            with self._changed:
                self.in_use -= 1
                self.made -= 1
                self._changed.notify_all()
            self._end()

    def _end(self) -> None:
        with self._changed:
            over = self._emptied if self._closed and not self.made else []
            emptied = list(over)
            over.clear()
        for each in emptied:
            each()

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
                full = isinstance(error, NoRoomError) and self.made > 0
                if full:  # those being made by now are counted too
                    self.limit = min(self.limit, self.made)
                elif self._turns:
                    self._turns.popleft().wake()
            self._end()
            if full:
                return []
            raise
