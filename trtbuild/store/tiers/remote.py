"""What a command moves: an engine with what belongs to it, or everything that travels."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from trtbuild.engine import Manifest
from trtbuild.errors import UsageError
from trtbuild.store.record import is_digest
from trtbuild.store.resolve import (
    Plan,
    find_engine,
    get_engine,
    known_engines,
    plan_record,
)
from trtbuild.store.tiers.names import records_prefix, travels
from trtbuild.store.tiers.progress import Progress
from trtbuild.store.tiers.rivals import bring_build
from trtbuild.store.tiers.tier import TierError
from trtbuild.store.tiers.transfer import fetch_record, pull, weight

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.store.local import Store
    from trtbuild.store.record import Record
    from trtbuild.store.tiers.tier import Tier

_DIGITS = re.compile(r"[0-9a-f]{6,64}")
_NAMED_BY = ("report",)
"""Kinds whose key says which engine they are about."""


def records_of(store: Store, engines: list[str]) -> list[Record]:
    """Return the records of engines, what makes them findable, and reports about them.

    Raises:
        UsageError: a name is nobody's, or more than one engine's.
    """
    found: dict[tuple[str, str], Record] = {}
    for text in engines:
        engine = find_engine(store, text)
        sha256 = engine.blobs[0].sha256
        plan = store.get("plan", sha256, Plan)
        named = get_engine(store, plan.read(Plan).engine_key) if plan is not None else None
        if named is None and plan is not None:  # it is gone: ours is found by these bytes then
            plan = plan_record(engine.read(Manifest))
        about = [
            record
            for kind in _NAMED_BY
            for record in store.records(kind)
            if sha256.encode() in bytes(record.preimage)
        ]
        for record in (engine, *filter(None, (named, plan)), *about):
            found[record.kind, record.key] = record
    return list(found.values())


def all_records(store: Store) -> list[Record]:
    """Return every record of the store that travels."""
    kinds = [kind for kind in store.kinds() if travels(kind) and kind != "engine"]
    return [
        *known_engines(store),
        *(record for kind in kinds for record in store.records(kind)),
    ]


def engines_of(tier: Tier) -> list[Record]:
    """Return the records of all engines in a tier; their blobs are not looked at."""
    found = []
    for key in _matching(tier, "engine", ""):
        record = fetch_record(tier, "engine", key)
        if record is not None:
            found.append(record)
    return found


def pull_engine(tier: Tier, store: Store, text: str, say: Callable[[str], None]) -> Record:
    """Bring the engine that ``text`` names to ``store``: its record, bytes and statements.

    ``say`` is told how far it is.

    Raises:
        UsageError: ``text`` names nothing there, or more than one engine.
        TierError: the tier cannot tell, or sends something else.
    """
    if not _DIGITS.fullmatch(text):
        raise UsageError(f"{text!r}: expected a digest or key, or 6 or more digits of one")
    keys = {_engine_of(tier, sha256) for sha256 in _matching(tier, "plan", text)}
    keys |= set(_matching(tier, "engine", text))
    if not keys:
        raise UsageError(
            f"{text!r} names no engine in {tier.uri}: 'trtbuild cache ls --from' lists those "
            f"that it has"
        )
    if len(keys) > 1:
        names = ", ".join(sorted(key[:12] for key in keys))
        raise UsageError(f"{text!r} names more than one engine: {names}. Give more digits")
    key = keys.pop()
    there = fetch_record(tier, "engine", key)
    sent = Progress(say, f"pull from {tier.uri}", weight(there) if there else 0).add
    if there is None or not bring_build(tier, store, there, sent, say):
        raise TierError(f"{tier.uri}: engine {key[:12]} is not whole there. Push it again")
    record = store.get("engine", key)
    if record is None or record.blobs != there.blobs:
        raise TierError(f"{tier.uri}: engine {key[:12]} was pulled and is gone. Run it again")
    for blob in record.blobs:
        pull(tier, store, "plan", blob.sha256)
    mended = {str(store.path(blob.sha256)) for blob in record.blobs}
    store.incidents[:] = [each for each in store.incidents if each.path not in mended]
    return record


def _matching(tier: Tier, kind: str, digits: str) -> list[str]:
    found = (name.rpartition("/")[2] for name in tier.names(records_prefix(kind, digits)))
    return [key for key in found if is_digest(key)]


def _engine_of(tier: Tier, sha256: str) -> str:
    plan = fetch_record(tier, "plan", sha256)
    if plan is None:
        raise TierError(
            f"{tier.uri}: plan {sha256[:12]} is listed there and absent. Run it again"
        )
    key = plan.read(Plan).engine_key
    engine = fetch_record(tier, "engine", key)
    if engine is not None and engine.blob("engine").sha256 != sha256:
        raise TierError(
            f"{tier.uri}: its plan record of {sha256[:12]} names engine {key[:12]}, which is "
            f"of other bytes. Nothing was stored here; delete that plan record there"
        )
    return key
