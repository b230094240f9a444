"""All remote tiers of a store, nearest first: read-through, write-through, single flight.

Asking a tier ends as a hit, a miss or an error, counted apart. An error is never taken for a
miss in silence: it ends the run, or becomes an incident that every report shows.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from trtbuild.errors import StoreError
from trtbuild.store import counters, unsent
from trtbuild.store.record import encode_record
from trtbuild.store.resolve import Plan
from trtbuild.store.tiers import transfer
from trtbuild.store.tiers.connect import connect
from trtbuild.store.tiers.lease import TTL_S, Turn, take_turn
from trtbuild.store.tiers.names import lease_name, record_name
from trtbuild.store.tiers.progress import Progress
from trtbuild.store.tiers.tier import NoAnswerError, TierError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trtbuild.store.local import Store
    from trtbuild.store.record import Record
    from trtbuild.store.tiers.address import Address
    from trtbuild.store.tiers.tier import Tier
    from trtbuild.store.tiers.transfer import Sent

T = TypeVar("T")

_ERRORS = 3
_ERRORS_WITHIN_S = 30.0
_PAUSE_S = 60.0


@dataclass(kw_only=True)
class Counts:
    """How asking a tier ended, in this process."""

    hits: int = 0
    misses: int = 0
    errors: int = 0


@dataclass(kw_only=True)
class Link:
    """One tier with its policy, its outcomes and its circuit breaker.

    After three errors in half a minute it is not asked for a minute: a run whose tier is down
    must not wait for it at every stage. That it does not answer is one incident of a store;
    each error is counted. ``unanswered`` is why it has not answered since, "" where it did.
    """

    address: Address
    counts: Counts = field(default_factory=Counts)
    unanswered: str = ""
    _tier: Tier | None = None
    _noted: bool = False
    _errors: deque[float] = field(default_factory=lambda: deque(maxlen=_ERRORS))
    _resumes: float = 0.0

    @property
    def tier(self) -> Tier:
        """The tier, connected at the first question.

        Raises:
            TierError: its configuration cannot be used.
        """
        if self._tier is None:
            self._tier = connect(self.address)
        return self._tier

    def answered(
        self, store: Store, kind: str, work: Callable[[], T], *, fails: bool
    ) -> T | None:
        """Return what ``work`` returns, or None and an incident where the tier fails.

        Raises:
            TierError: it fails, and ``fails`` is set.
        """
        try:
            self._require_closed()
            found = work()
        except TierError as error:
            self.unanswered = self.unanswered or str(error)
            self._failed()
            self.count(store, kind, "error")
            if fails:
                raise
            if not (self._noted and isinstance(error, NoAnswerError)):
                store.note(self.address.shown, f"error, gone on without this tier: {error}")
            self._noted = self._noted or isinstance(error, NoAnswerError)
            return None
        else:
            self.unanswered = ""
            return found

    def count(self, store: Store, kind: str, outcome: counters.Outcome) -> None:
        """Count how asking ended, for 'trtbuild cache stats' too."""
        tally = counters.Tally(tier=self.address.shown, kind=kind, outcome=outcome, count=1)
        counters.count(store, tally)

    def _require_closed(self) -> None:
        if time.monotonic() < self._resumes:
            raise NoAnswerError(
                f"{self.address.shown}: not asked: it failed {_ERRORS} times in a row. It is "
                f"asked again after {_PAUSE_S:.0f} s."
            )

    def _failed(self) -> None:
        self.counts.errors += 1
        now = time.monotonic()
        if now < self._resumes:
            return
        self._errors.append(now)
        if len(self._errors) == _ERRORS and now - self._errors[0] < _ERRORS_WITHIN_S:
            self._resumes = now + _PAUSE_S
            self._errors.clear()


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The remote tiers of a store, in the order in which they are asked."""

    links: tuple[Link, ...]
    ttl_s: float = TTL_S
    say: Callable[[str], None] = lambda _text: None

    def unanswered(self) -> tuple[str, ...]:
        """Return, for each tier whose last question had no answer, why."""
        return tuple(link.unanswered for link in self.links if link.unanswered)

    def fetch(
        self,
        store: Store,
        kind: str,
        key: str,
        shape: type[object] = object,
        *,
        counted: bool,
    ) -> bool:
        """Bring a record from the nearest tier that has it to ``store`` and nearer tiers.

        ``counted`` where this is the first question for it; who waits asks again and again.

        Raises:
            TierError: a tier fails, and its policy is to fail.
        """
        for index, link in enumerate(self.links):
            work = partial(self._pull, link, store, (kind, key), shape)
            found = link.answered(store, kind, work, fails=link.address.fails)
            if found:
                self._brought(store, kind, key, index, counted=counted)
                return True
            if found is not None and counted:
                link.counts.misses += 1
                link.count(store, kind, "miss")
        return False

    def publish(
        self, store: Store, record: Record, shape: type[object] = object
    ) -> tuple[Record, StoreError | None]:
        """Send a record to all tiers that this machine writes; return the one to use.

        Where another host was first, its record is brought to ``store`` and is everybody's, if
        its value is of ``shape``. A record that a tier did not take is marked as unsent, and
        the error, where the tier's policy is to fail, is returned for who stores the record.
        """
        failed: StoreError | None = None
        for link in self._writable():
            agreed: Record | None = None
            try:
                if not _waits(link, store, record):
                    work = partial(self._agreed, link, store, record, shape)
                    fails = link.address.write_fails
                    agreed = link.answered(store, record.kind, work, fails=fails)
            except StoreError as error:
                failed = failed or _unsent_error(link, error)
            if agreed is None:
                unsent.mark(store, link.address.identity, record.kind, record.key)
            record = agreed or record
        return record, failed

    def settle(self, store: Store) -> None:
        """Send what tiers that this machine writes did not take when it was made.

        Raises:
            TierError: a tier fails again, and its policy is to fail.
        """
        for link in self._writable():
            for kind, key in unsent.unsent(store, link.address.identity):
                work = partial(self._settled, link, store, kind, key)
                try:
                    done = link.answered(store, kind, work, fails=link.address.write_fails)
                except StoreError as error:
                    raise _unsent_error(link, error) from error
                if done is None:
                    break

    def share(self, store: Store, record: Record) -> None:
        """Send what a record has here and a tier lacks to all that this machine writes."""
        for link in self._writable():
            work = partial(self._push, link, store, record)
            link.answered(store, record.kind, work, fails=link.address.write_fails)

    @contextlib.contextmanager
    def flight(
        self, store: Store, kind: str, key: str, appeared: Callable[[], Record | None]
    ) -> Iterator[Record | None]:
        """Wait for our turn on ``key`` among hosts; yield None to who must make it."""
        turn: Turn | None = None
        able = [link for link in self._writable() if link.address.scheme != "oci"]
        for link in able[:1]:
            work = partial(self._turn, link, lease_name(kind, key), appeared)
            turn = link.answered(store, kind, work, fails=link.address.write_fails)
        turn = turn or Turn()
        try:
            yield turn.record
        finally:
            turn.release()

    def _brought(self, store: Store, kind: str, key: str, index: int, *, counted: bool) -> None:
        """Count what tier ``index`` had, and send it to nearer tiers that are written."""
        record = store.get(kind, key)
        if record is None:
            return
        if counted:
            found = self.links[index]
            found.counts.hits += 1
            counters.count_record(store, record, found=True, tier=found.address.shown)
        for link in self.links[:index]:
            if link.address.write:
                work = partial(self._push, link, store, record)
                link.answered(store, kind, work, fails=link.address.write_fails)

    def _turn(self, link: Link, name: str, appeared: Callable[[], Record | None]) -> Turn:
        return take_turn(link.tier, name, appeared, self.ttl_s)

    def _writable(self) -> tuple[Link, ...]:
        return tuple(link for link in self.links if link.address.write)

    def _pull(
        self, link: Link, store: Store, name: tuple[str, str], shape: type[object]
    ) -> bool:
        kind, key = name
        record = transfer.fetch_record(link.tier, kind, key)
        if record is None:
            return False
        sent = self._told(f"pull {kind} {key[:12]} from {link.address.shown}", record)
        return transfer.bring(link.tier, store, record, sent, partial(store.put, shape=shape))

    def _push(self, link: Link, store: Store, record: Record) -> Sent:
        what = f"push {record.kind} {record.key[:12]} to {link.address.shown}"
        return transfer.push(link.tier, store, record, self._told(what, record))

    def _told(self, what: str, record: Record) -> Callable[[int], None]:
        return Progress(self.say, what, transfer.weight(record)).add

    def _settled(self, link: Link, store: Store, kind: str, key: str) -> bool:
        """Send a record that is marked as unsent, and take the mark away."""
        tier, identity = link.tier, link.address.identity
        record = store.get(kind, key)
        if record is None:
            unsent.forget_abandoned(store, identity, kind, key)
            return True
        if kind != "plan" or _has_engine(tier, record):
            self._push(link, store, record)
            there = transfer.fetch_record(tier, kind, key)
            if there is not None and encode_record(there) != encode_record(record):
                store.note(
                    f"{tier.uri}/{record_name(kind, key)}",
                    "another host was first while this tier could not be written: this machine "
                    "keeps its own",
                )
        unsent.forget(store, identity, kind, key)
        return True

    def _agreed(self, link: Link, store: Store, record: Record, shape: type[object]) -> Record:
        """Send ``record``; return it, or the record that another host had put there first."""
        tier = link.tier
        if record.kind == "plan" and not _has_engine(tier, record):
            return record  # it would name what is not there
        if self._push(link, store, record).won:
            return record
        winner = transfer.fetch_record(tier, record.kind, record.key)
        if winner is None or encode_record(winner) == encode_record(record):
            return record
        try:
            winner.read(shape)
        except StoreError as error:
            name = record_name(record.kind, record.key)
            store.note(f"{tier.uri}/{name}", f"this machine keeps its own: {error}")
            return record
        if transfer.bring(tier, store, winner, put=partial(store.put, shape=shape)):
            return winner
        if not transfer.replace(tier, store, record, winner):
            raise TierError(
                f"{tier.uri}: its {record.kind} record {record.key[:12]} names a blob that is "
                f"lost there, and changes meanwhile. Run the command again"
            )
        return record


def _waits(link: Link, store: Store, record: Record) -> bool:
    """Tell whether this is the plan of an engine that is marked as unsent: it goes after it."""
    if record.kind != "plan":
        return False
    engine_key = record.read(Plan).engine_key
    return unsent.is_unsent(store, link.address.identity, "engine", engine_key)


def _has_engine(tier: Tier, plan: Record) -> bool:
    """Tell whether the engine that a plan names has the plan's bytes in ``tier``."""
    engine = transfer.fetch_record(tier, "engine", plan.read(Plan).engine_key)
    return engine is not None and plan.key in (blob.sha256 for blob in engine.blobs)


def _unsent_error(link: Link, error: StoreError) -> StoreError:
    return TierError(
        f"{error}. What was made is stored here and not there: run the command again once the "
        f"cause is gone, or 'trtbuild cache push --all --to {link.address.shown}'"
    )
