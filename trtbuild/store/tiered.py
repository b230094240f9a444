"""A store with remote tiers behind it: the same store, that also asks and tells others."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trtbuild.store.local import Store
from trtbuild.store.tiers.address import read_address
from trtbuild.store.tiers.chain import Chain, Link
from trtbuild.store.tiers.names import travels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trtbuild.store.record import Record


@dataclass(frozen=True, kw_only=True)
class TieredStore(Store):
    """A local store whose misses are looked up in ``chain``, and whose results go there."""

    chain: Chain

    @property
    def here(self) -> Store:
        """The local store alone."""
        return Store(root=self.root, uri=self.uri, incidents=self.incidents)

    def get(self, kind: str, key: str, shape: type[object] = object) -> Record | None:
        """Return the record of ``key``, brought here from a remote tier if it must be.

        Raises:
            StoreError: the store cannot be read, or a tier fails whose policy is to fail.
        """
        return self._found(kind, key, shape, counted=True)

    def put(self, record: Record, shape: type[object] = object) -> Record:
        """Store ``record`` here and in the tiers that are written; return what is stored.

        The first writer wins, among hosts too, unless another version of trtbuild wrote its
        record, which is not of ``shape``: that stays there, and this one here. Where a tier
        fails, the record is stored here all the same, marked as unsent, before that is raised.

        Raises:
            StoreError: the store cannot be written, or a tier fails whose policy is to fail.
        """
        known = super().get(record.kind, record.key, shape) if travels(record.kind) else record
        if known is not None:
            return super().put(record, shape)
        agreed, failed = self.chain.publish(self.here, record, shape)
        stored = super().put(agreed, shape)
        if failed:
            raise failed
        return stored

    def settled(self, say: Callable[[str], None] = lambda _text: None) -> Store:
        """Return this store, after sending what the tiers did not take when it was made.

        ``say`` is told from then on how far transfers are.

        Raises:
            StoreError: a tier fails again whose policy is to fail.
        """
        chain = replace(self.chain, say=say)
        chain.settle(self.here)
        return replace(self, chain=chain)

    def unanswered(self) -> tuple[str, ...]:
        """Return why tiers did not answer the last question; what they have is unknown."""
        return self.chain.unanswered()

    def share(self, record: Record) -> None:
        """Send statements that were made after ``record`` to the tiers that are written.

        Raises:
            StoreError: a tier fails whose policy is to fail.
        """
        self.chain.share(self.here, record)

    @contextlib.contextmanager
    def flight(
        self, kind: str, key: str, shape: type[object] = object
    ) -> Iterator[Record | None]:
        """Wait for our turn among hosts; see :func:`trtbuild.store.lease.flight`."""
        if not travels(kind):
            yield None
            return
        with self.chain.flight(
            self.here, kind, key, lambda: self._found(kind, key, shape, counted=False)
        ) as appeared:
            yield appeared

    def _found(
        self, kind: str, key: str, shape: type[object], *, counted: bool
    ) -> Record | None:
        found = super().get(kind, key, shape)
        if found is not None or not travels(kind):
            return found
        if self.chain.fetch(self.here, kind, key, shape, counted=counted):
            return super().get(kind, key, shape)
        return None


def add_tiers(store: Store, remotes: tuple[str, ...], *, offline: bool) -> Store:
    """Return ``store`` with the tiers that URIs name behind it; nothing is contacted yet.

    With ``offline``, those that need the network are left out.

    Raises:
        UsageError: a URI is wrong.
    """
    addresses = [read_address(uri) for uri in remotes]
    links = tuple(
        Link(address=address) for address in addresses if not (offline and address.is_network)
    )
    if not links:
        return store
    return TieredStore(
        root=store.root, uri=store.uri, incidents=store.incidents, chain=Chain(links=links)
    )
