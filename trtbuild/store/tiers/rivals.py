"""Two hosts built one engine key: which of the two builds is the one.

Their bytes or manifests differ, so that what is signed of one does not count for the other, and
a key has one record. In a tier the first stays: machines may have it. Here the one stays that
was built, until its user brings another by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.errors import UsageError
from trtbuild.store.pins import read_pins
from trtbuild.store.resolve import Plan
from trtbuild.store.tiers.names import record_name
from trtbuild.store.tiers.tier import TierError
from trtbuild.store.tiers.transfer import Sent, bring, fetch_record, push

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.store.local import Store
    from trtbuild.store.record import Record
    from trtbuild.store.tiers.tier import Tier

_SHOWN_DIGITS = 12


class RivalError(TierError):
    """The tier has another build of an engine's key, which stays."""


def push_builds(
    tier: Tier, store: Store, records: list[Record], sent: Callable[[int], None]
) -> tuple[int, Sent, list[RivalError]]:
    """Send records as :func:`~trtbuild.store.tiers.transfer.push` does, but no second build.

    Returns how many are there now, what that took, and of which engines the tier has another
    build. Of those neither record nor statements are sent, and no plan that leads to them.

    Raises:
        TierError: as there.
        StoreError: as there.
    """
    number, total = 0, Sent()
    rivals: dict[str, RivalError] = {}
    for record in records:
        if record.kind == "plan" and record.read(Plan).engine_key in rivals:
            continue
        try:
            _require_no_rival(tier, record)
            done = push(tier, store, record, sent)
            if not done.won:  # somebody may have been faster
                _require_no_rival(tier, record)
        except RivalError as error:
            rivals[record.key] = error
        else:
            number, total = number + 1, total + done
    return number, total, list(rivals.values())


def bring_build(
    tier: Tier,
    store: Store,
    record: Record,
    sent: Callable[[int], None],
    say: Callable[[str], None],
) -> bool:
    """Bring a record that a user asked for; an engine that was built here of its key gives way.

    ``say`` is told that it does. Returns False where the tier lost a part of it.

    Raises:
        UsageError: the one that is here is pinned.
        TierError: the tier cannot tell, or what it sends is not to be used.
        StoreError: the store cannot be written.
    """
    ours = store.get("engine", record.key) if record.kind == "engine" else None
    if ours is None or _is_same(ours, record):
        return bring(tier, store, record, sent)
    former = ours.blob("engine").sha256
    pins = [name for name, pin in read_pins(store)[0].items() if pin.sha256 == former]
    if pins:
        raise UsageError(
            f"engine {_digits(record)} of {tier.uri} is another build of what is here as "
            f"{_digits(ours)}, which is pinned as {pins[0]!r}: expected no pin of it. Remove "
            f"that (trtbuild cache unpin {pins[0]}), or bring it to another --store"
        )
    if not bring(tier, store, record, sent, store.replace):
        return False
    say(f"engine {_told(record)} takes the place of {_told(ours)}, another build of its key")
    if former != record.blob("engine").sha256:
        plan = store.get("plan", former, Plan)
        if plan is not None and plan.read(Plan).engine_key == record.key:
            store.forget("plan", former)
    return True


def _require_no_rival(tier: Tier, record: Record) -> None:
    if record.kind != "engine":
        return
    there = fetch_record(tier, record.kind, record.key)
    if there is None or _is_same(there, record):
        return
    raise RivalError(
        f"{tier.uri} has another build of engine {_told(record)}: {_told(there)}. Machines may "
        f"have that, so it stays, and what is signed of ours does not count for it. Take it "
        f"(trtbuild cache pull {there.blob('engine').sha256} --from URI), or delete "
        f"{record_name(record.kind, record.key)} there and push again"
    )


def _is_same(one: Record, other: Record) -> bool:
    return (one.blobs, bytes(one.value)) == (other.blobs, bytes(other.value))


def _told(record: Record) -> str:
    return f"{_digits(record)} of {record.created}"


def _digits(record: Record) -> str:
    return record.blob("engine").sha256[:_SHOWN_DIGITS]
