"""What all engines count that this process has loaded, as one text for Prometheus."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

from trtbuild.backends import metrics as figures

if TYPE_CHECKING:
    from trtbuild.backends.metrics import Family, Metrics
    from trtbuild.backends.session import LoadedSession

CONTENT_TYPE = figures.CONTENT_TYPE


class Registry:
    """The figures of sessions that come and go; what a session counted stays when it goes.

    A session's :class:`Metrics` must not hold the session.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[Metrics] = []
        self._gone: deque[Metrics] = deque()  # appended to by the collector, without the lock
        self._totals: tuple[Family, ...] = ()

    def register(self, session: LoadedSession) -> None:
        """Count a session in."""
        weakref.finalize(session, self._gone.append, session.stats).atexit = False
        with self._lock:
            self._settle()
            self._held.append(session.stats)

    def families(self) -> tuple[Family, ...]:
        """Return the sums of all sessions by their labels."""
        with self._lock:
            self._settle()
            held, totals = tuple(self._held), self._totals
        return figures.merged((totals, *(stats.families() for stats in held)))

    def _settle(self) -> None:
        """Keep of the sessions that are gone what they counted, and nothing else."""
        while self._gone:
            stats = self._gone.popleft()
            self._held.remove(stats)
            self._totals = figures.merged((self._totals, stats.totals()))


_REGISTRY = Registry()


def register(session: LoadedSession) -> None:
    """Count in a session of :func:`trtbuild.load`."""
    _REGISTRY.register(session)


def render() -> str:
    """Return the figures of all sessions of this process: sums by backend, target and engine.

    Counters and latencies hold those of sessions that were closed and forgotten, so that they
    never fall; gauges (contexts, device memory) are of the sessions that somebody holds.
    """
    return figures.written(_REGISTRY.families())
