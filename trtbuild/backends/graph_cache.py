"""Which calls are worth a CUDA graph, and what becomes of those that cannot have one."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

G = TypeVar("G")

_WATCHED = 16
"""Keys whose uses are counted, per graph that may be kept: addresses that never come back
must not fill memory."""


class Refusals:
    """The keys that could not be captured; shared by all contexts of an engine.

    After ``patience`` of them nothing is tried any more: it is the engine, not the key.
    """

    def __init__(self, patience: int = 3) -> None:
        self._patience = patience
        self._keys: set[Hashable] = set()
        self.reason = ""

    def add(self, key: Hashable, reason: str) -> None:
        """Remember that ``key`` could not be captured, and why the first could not."""
        self._keys.add(key)
        self.reason = self.reason or reason

    def holds(self, key: Hashable) -> bool:
        """Return whether a capture of ``key`` must not be tried."""
        return len(self._keys) >= self._patience or key in self._keys


class GraphCache(Generic[G]):
    """The graphs of one context, the least recently used one dropped when it is full.

    ``limit`` 0 keeps none. A key is captured at its use number ``warm_after`` + 1: input
    shapes and addresses that come once do not pay for a capture.
    """

    def __init__(
        self, limit: int, warm_after: int, refusals: Refusals, dispose: Callable[[G], None]
    ) -> None:
        self._limit = limit
        self._warm_after = warm_after
        self._refusals = refusals
        self._dispose = dispose
        self._graphs: OrderedDict[Hashable, G] = OrderedDict()
        self._uses: OrderedDict[Hashable, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def find(self, key: Hashable) -> G | None:
        """Return the graph of ``key``, now the most recently used one, or ``None``."""
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
        return graph

    def wants(self, key: Hashable) -> bool:
        """Count a use of ``key``, which has no graph; return whether to capture it now."""
        if not self._limit or self._refusals.holds(key):
            return False
        uses = self._uses.pop(key, 0) + 1
        self._uses[key] = uses
        if len(self._uses) > self._limit * _WATCHED:
            self._uses.popitem(last=False)
        return uses > self._warm_after

    def keep(self, key: Hashable, graph: G) -> None:
        """Keep the graph of ``key``, and drop the least recently used one beyond the limit."""
        self._uses.pop(key, None)
        self._graphs[key] = graph
        while len(self._graphs) > self._limit:
            self._dispose(self._graphs.popitem(last=False)[1])

    def refuse(self, key: Hashable, reason: str) -> None:
        """Remember that ``key`` has no graph; it runs without one from now on."""
        self._uses.pop(key, None)
        self._refusals.add(key, reason)

    def clear(self) -> None:
        """Drop every graph: the addresses that they hold are no longer the buffers'."""
        while self._graphs:
            self._dispose(self._graphs.popitem()[1])
