"""From what a user types to a record: digests, prefixes, keys and paths of engines.

The engine's own digest is looked up through small ``plan`` records, so that no scan is needed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.canonical import sha256_file
from trtbuild.engine import Manifest, Value
from trtbuild.errors import StoreError, TrustError, UsageError
from trtbuild.store.reader import BlobLostError
from trtbuild.store.record import is_digest, make_record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trtbuild.store.local import Store
    from trtbuild.store.record import Record

_MIN_PREFIX = 6
_PREFIX = re.compile(r"[0-9a-f]{6,64}")
_SHOWN_DIGITS = 12


class Plan(Value, frozen=True, kw_only=True):
    """The value of a ``plan`` record: which engine record these bytes belong to."""

    engine_key: str


def put_plan(store: Store, manifest: Manifest) -> Record:
    """Make an engine, whose record is stored, findable by the digest of its bytes.

    Of several engines with equal bytes the first is the one that is found.
    """
    return store.put(plan_record(manifest), Plan)


def plan_record(manifest: Manifest) -> Record:
    """Return the record that finds an engine by the digest of its bytes; it is not stored."""
    preimage = {"engine_sha256": manifest.sha256}
    return make_record("plan", manifest.sha256, preimage, Plan(engine_key=manifest.key))


def get_engine(store: Store, key: str) -> Record | None:
    """Return the record of an engine, that of another version only where ours has none.

    Reading a manifest of another version says what to do.

    Raises:
        StoreError: the store cannot be read.
    """
    return store.get("engine", key, Manifest) or store.here.get("engine", key)


def known_engines(store: Store) -> tuple[Record, ...]:
    """Return the records of all engines here; blobs are not looked at, and nothing is used.

    Of one that another version made too, ours.
    """
    ours = {record.key: record for record in store.records("engine", Manifest)}
    return tuple(({record.key: record for record in store.records("engine")} | ours).values())


def engines_of_bytes(store: Store, sha256: str) -> Iterator[Record]:
    """Yield the records here of whole engines that have these bytes; reads all engines'."""
    for record in store.here.records("engine", Manifest):
        if any(blob.name == "engine" and blob.sha256 == sha256 for blob in record.blobs):
            found = store.here.get("engine", record.key, Manifest)
            if found is not None:
                yield found


def find_engine(store: Store, text: str) -> Record:
    """Return the engine record that ``text`` names.

    ``text`` is an engine's digest or key, a prefix of one (at least 6 digits), or the path of a
    plan file, which is hashed.

    Raises:
        UsageError: nothing, or more than one engine, has this name.
        TrustError: T08, what is known of these bytes is the record of others.
        StoreError: the engine is known, but its record is lost; or a tier that may know it did
            not answer.
    """
    found = _find_by_digits(store, text)
    if found is not None:
        return found
    path = Path(text)
    if path.is_file():
        try:
            sha256 = sha256_file(path)
        except OSError as error:
            message = (
                f"{text}: the file cannot be read: {error.strerror}. Give one that you may "
                "read, or an engine's digest"
            )
            raise UsageError(message) from error
        return _engine_of_plan(store, sha256, f"{text} (sha256 {sha256[:_SHOWN_DIGITS]})")
    raise _nothing(store, text)


def find_record(store: Store, text: str) -> Record:
    """Return the engine record that ``text`` names, or else the record of any kind by its key.

    Raises:
        UsageError: nothing, or more than one record, has this name.
        StoreError: the engine is known, but its record is lost; or a tier that may know it did
            not answer.
    """
    if not _PREFIX.fullmatch(text) or any(_digits(store, text)):
        return find_engine(store, text)
    matches = [(kind, key) for kind in store.kinds() for key in store.keys(kind, text)]
    if len(matches) > 1:
        raise _ambiguous(text, [f"{kind} {key[:_SHOWN_DIGITS]}" for kind, key in matches])
    found = store.get(*matches[0]) if matches else None
    if found is None:
        raise _nothing(store, text)
    return found


def _find_by_digits(store: Store, text: str) -> Record | None:
    if not _PREFIX.fullmatch(text):
        return None
    records = {}
    plans, keys = _digits(store, text)
    for sha256 in plans:
        record = _engine_of_plan(store, sha256, text)
        records[record.key] = record
    for key in keys:
        found = get_engine(store, key)
        if found is not None:
            records[key] = found
    if not records and is_digest(text):  # its plan record may be gone
        return next(engines_of_bytes(store, text), None)
    if len(records) > 1:
        names = [
            f"engine {key[:_SHOWN_DIGITS]} of {record.created}"
            for key, record in sorted(records.items())
        ]
        raise _ambiguous(text, names)
    return next(iter(records.values()), None)


def _digits(store: Store, text: str) -> tuple[list[str], list[str]]:
    """Return the digests of engines, and the keys, that begin with ``text``.

    Remote tiers are asked for a whole digest that is nothing here, and only then: an engine
    that is here is found without them.
    """
    plans, keys = store.keys("plan", text), store.keys("engine", text)
    if not plans and not keys and is_digest(text):
        if store.get("plan", text) is not None:
            return [text], []
        if store.get("engine", text) is not None:
            return [], [text]
    return plans, keys


def _engine_of_plan(store: Store, sha256: str, label: str) -> Record:
    plan = store.get("plan", sha256, Plan)
    engine = get_engine(store, plan.read(Plan).engine_key) if plan is not None else None
    # Engines of several keys can have the same bytes, and the plan names only the first.
    engine = engine or next(engines_of_bytes(store, sha256), None)
    if plan is None and engine is None:
        _require_answers(store, label)
        message = (
            f"{label}: no engine in the store {store.root} has these bytes. "
            "'trtbuild cache ls' lists those it has; --store names another store"
        )
        raise UsageError(message)
    if engine is None:
        _require_answers(store, label)
        message = (
            f"{label}: the record or the bytes of this engine are lost or were damaged in the "
            f"store {store.root}. Bring it again (trtbuild cache pull "
            f"{sha256[:_SHOWN_DIGITS]} --from URI), or build it again"
        )
        raise BlobLostError(message)
    return _with_bytes(engine, sha256, label)


def _with_bytes(engine: Record, sha256: str, label: str) -> Record:
    """Return ``engine`` if it is of the bytes that were asked for.

    Whoever may write to a tier may write there which record some bytes belong to.
    """
    found = engine.blob("engine").sha256
    if found == sha256:
        return engine
    message = (
        f"{label}: its plan record names engine {engine.key[:_SHOWN_DIGITS]}, which is of "
        f"other bytes ({found[:_SHOWN_DIGITS]}): expected a record of "
        f"{sha256[:_SHOWN_DIGITS]}. Two hosts built it, or somebody changed the store or a "
        f"tier of it: bring the one that you want (trtbuild cache pull "
        f"{sha256[:_SHOWN_DIGITS]} --from URI), which takes the other's place, or use another "
        "--store"
    )
    raise TrustError(message, "T08")


def _ambiguous(text: str, names: list[str]) -> UsageError:
    message = f"{text!r} names more than one: {'; '.join(names)}. Give more digits"
    return UsageError(message)


def _require_answers(store: Store, label: str) -> None:
    """Refuse to call a name wrong that a tier which did not answer may know."""
    silent = store.unanswered()
    if silent:
        message = (
            f"{label}: not in {store.root}, and a tier did not answer: {'; '.join(silent)}"
        )
        raise StoreError(message)


def _nothing(store: Store, text: str) -> UsageError:
    if is_digest(text):
        _require_answers(store, text[:_SHOWN_DIGITS])
        message = (
            f"{text!r} names nothing in the store {store.root}: expected a digest or a key of "
            f"what is here ('trtbuild cache ls' lists the engines). Bring an engine with "
            f"'trtbuild cache pull {text[:_SHOWN_DIGITS]} --from URI'"
        )
        return UsageError(message)
    message = (
        f"{text!r} names nothing in the store {store.root}: expected a digest, a key, at least "
        f"{_MIN_PREFIX} of its first digits, or the path of an engine file. Remote tiers are "
        "asked for whole digests only; 'trtbuild cache ls' lists the engines"
    )
    return UsageError(message)
