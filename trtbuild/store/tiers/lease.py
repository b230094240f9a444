"""Single flight across hosts: a small object on a remote tier that says who makes a key.

As on one machine, leases save work and correctness does not depend on them: of two owners, one
that slept through its time included, the first record wins. A lease that stays as it is for
``TTL_S`` by the waiter's own clock is taken over: clocks of hosts are not compared. Only one
that ended long ago by anybody's clock is taken at once.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from trtbuild.canonical import encode
from trtbuild.engine import Value
from trtbuild.store.tiers.tier import TierError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.store.record import Record
    from trtbuild.store.tiers.tier import Tier, Version

TTL_S = 60.0
_POLL_S = 1.0
_SKEW_S = 600.0
"""Clocks that differ by more are not told apart from a lease that ended."""


class Lease(Value, frozen=True, kw_only=True):
    """Who makes a key, and until when (seconds since 1970); 0 where nobody does any more."""

    owner: str
    nonce: str
    expires: float


@dataclass(kw_only=True)
class Turn:
    """Whose turn it is: ``record`` where somebody had made it, else this process's."""

    record: Record | None = None
    release: Callable[[], None] = lambda: None


@dataclass(kw_only=True)
class _Held:
    """A lease that is ours, renewed by a thread until it is released."""

    tier: Tier
    name: str
    nonce: str
    ttl_s: float
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def renew(self) -> None:
        while not self.ended.wait(self.ttl_s / 3):
            with self.lock, contextlib.suppress(TierError):  # the next renewal, or another host
                if self.ended.is_set() or not self._write(time.time() + self.ttl_s):
                    return

    def release(self) -> None:
        self.ended.set()
        with self.lock, contextlib.suppress(TierError):  # it ends by itself
            seen = self._ours()
            if seen is None:
                return
            try:
                self.tier.drop(self.name, seen)
            except TierError:  # who writes need not have the right to delete
                self.tier.swap(self.name, _lease(self.nonce, 0.0), seen)

    def _write(self, expires: float) -> bool:
        seen = self._ours()
        return seen is not None and self.tier.swap(self.name, _lease(self.nonce, expires), seen)

    def _ours(self) -> Version | None:
        seen = self.tier.peek(self.name)
        return seen if seen is not None and _read(seen).nonce == self.nonce else None


def take_turn(
    tier: Tier, name: str, appeared: Callable[[], Record | None], ttl_s: float = TTL_S
) -> Turn:
    """Wait until the lease ``name`` is ours or ``appeared`` returns the record.

    Raises:
        TierError: the tier cannot tell.
    """
    nonce = secrets.token_hex(16)
    watched, since = "", time.monotonic()
    while True:
        seen = tier.peek(name)
        if seen is not None and seen.tag != watched:
            watched, since = seen.tag, time.monotonic()
        over = seen is None or _is_over(seen) or time.monotonic() - since > ttl_s
        if over and tier.swap(name, _lease(nonce, time.time() + ttl_s), seen):
            held = _Held(tier=tier, name=name, nonce=nonce, ttl_s=ttl_s)
            threading.Thread(target=held.renew, daemon=True).start()
            record = appeared()  # between our last look and the lease
            if record is not None:
                held.release()
                return Turn(record=record)
            return Turn(release=held.release)
        time.sleep(min(_POLL_S, ttl_s / 3))
        record = appeared()
        if record is not None:
            return Turn(record=record)


def _is_over(seen: Version) -> bool:
    return _read(seen).expires < time.time() - _SKEW_S


def _read(seen: Version) -> Lease:
    """Return the lease in bytes; what is no lease of ours has ended."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.json.decode(seen.data, type=Lease)
    return Lease(owner="", nonce="", expires=0.0)


def _lease(nonce: str, expires: float) -> bytes:
    owner = f"{os.uname().nodename}:{os.getpid()}"
    return encode(Lease(owner=owner, nonce=nonce, expires=round(expires, 3)))
