"""One record with its blobs and statements, from a tier or to one; everything is verified.

Blobs go before the record that names them, in both directions: what is visible is whole.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtbuild.errors import StoreError
from trtbuild.store.reader import BlobLostError
from trtbuild.store.record import (
    MAX_RECORD_BYTES,
    RecordError,
    decode_record,
    encode_record,
    is_digest,
)
from trtbuild.store.statements import (
    MAX_STATEMENT_BYTES,
    MAX_STATEMENTS,
    put_statement,
    statements,
)
from trtbuild.store.tiers.names import (
    blob_name,
    record_name,
    statement_name,
    statements_prefix,
)
from trtbuild.store.tiers.tier import TierError, TooLargeError, Upload, read_small

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.store.local import Store
    from trtbuild.store.record import Blob, Record
    from trtbuild.store.tiers.tier import Tier


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What records took to send: objects and bytes that went, and objects that were there.

    ``won`` tells whether the last record was new there.
    """

    objects: int = 0
    bytes: int = 0
    present: int = 0
    won: bool = False

    def __add__(self, other: Sent) -> Sent:
        """Return both together."""
        return Sent(
            objects=self.objects + other.objects,
            bytes=self.bytes + other.bytes,
            present=self.present + other.present,
            won=other.won,
        )


def fetch_record(tier: Tier, kind: str, key: str) -> Record | None:
    """Return the record of ``key`` in ``tier``, its blobs not asked for; None: a miss.

    Raises:
        TierError: the tier cannot tell, or what it has is not that record.
    """
    data = read_small(tier, record_name(kind, key), MAX_RECORD_BYTES)
    return None if data is None else parse_record(tier.uri, kind, key, data)


def parse_record(where: str, kind: str, key: str, data: bytes) -> Record:
    """Return the record in bytes that came from ``where``.

    Raises:
        TierError: they are not the record of ``key``.
    """
    try:
        record = decode_record(data)
    except (RecordError, ValueError) as error:
        raise _damaged(where, record_name(kind, key), str(error)) from error
    if (record.kind, record.key) != (kind, key):
        reason = f"it is the record of {record.kind} {record.key}"
        raise _damaged(where, record_name(kind, key), reason)
    return record


def pull(  # noqa: PLR0913  tier and store, kind and key, and two that few give
    tier: Tier,
    store: Store,
    kind: str,
    key: str,
    sent: Callable[[int], None] | None = None,
    *,
    shape: type[object] = object,
) -> bool:
    """Bring the record of ``key`` with all it names from ``tier`` to ``store``.

    Returns False on a miss. A record with a lost blob is a miss too, and becomes an incident.
    ``shape`` is as in :meth:`Store.put`: what another version has here does not keep it out.

    Raises:
        TierError: the tier cannot tell, or what it sends is not to be used; no byte of that
            is visible in the store.
        StoreError: the store cannot be written.
    """
    record = fetch_record(tier, kind, key)
    if record is None:
        return False
    for blob in record.blobs:
        if not store.has(blob) and not _pull_blob(tier, store, blob):
            store.note(
                f"{tier.uri}/{blob_name(blob.sha256)}",
                f"missing there, named by {kind} record {key}: push it again from a sound "
                f"store, or delete that record",
            )
            return False
        if sent is not None:
            sent(blob.bytes)
    pull_statements(tier, store, record)
    store.put(record, shape)
    return True


def pull_statements(tier: Tier, store: Store, record: Record) -> int:
    """Bring the statements about an engine that ``store`` lacks; return how many those were.

    Whoever may write there could put anything beside the good ones: what is damaged or too
    large is passed over, and what would be too many to be looked at. Both become incidents.
    """
    brought = 0
    for subject in subjects(record):
        known = {hashlib.sha256(each).hexdigest() for each in statements(store, subject)}
        lacking = [
            name
            for name in tier.names(statements_prefix(subject))
            if _is_lacking(name, subject, known)
        ]
        room = max(0, MAX_STATEMENTS - len(known))
        if len(lacking) > room:
            store.note(
                f"{tier.uri}/{statements_prefix(subject)}",
                f"{len(lacking) - room} statements were passed over: at most {MAX_STATEMENTS} "
                "about one engine are kept. Delete there what is none",
            )
        brought += sum(_pull_statement(tier, store, subject, name) for name in lacking[:room])
    return brought


def _is_lacking(name: str, subject: str, known: set[str]) -> bool:
    sha256 = name.rpartition("/")[2]
    return is_digest(sha256) and sha256 not in known and name == statement_name(subject, sha256)


def _pull_statement(tier: Tier, store: Store, subject: str, name: str) -> bool:
    """Bring one statement; False where there is none, or one that is not to be used."""
    try:
        envelope = read_small(tier, name, MAX_STATEMENT_BYTES)
    except TooLargeError as error:
        store.note(f"{tier.uri}/{name}", f"passed over: {error}")
        return False
    if envelope is None:
        return False
    if hashlib.sha256(envelope).hexdigest() != name.rpartition("/")[2]:
        store.note(f"{tier.uri}/{name}", "passed over: its bytes have another digest")
        return False
    put_statement(store, subject, envelope)
    return True


def push(
    tier: Tier, store: Store, record: Record, sent: Callable[[int], None] = lambda _: None
) -> Sent:
    """Send ``record`` with all it names to ``tier``; what is there already is not sent.

    Can be repeated after a kill at any point. ``sent`` is told the bytes that go.

    Raises:
        TierError: the tier cannot take it, or has something else under a blob's name.
        StoreError: a blob is lost here.
    """
    total = Sent()
    for blob in record.blobs:
        total += _push_blob(tier, store, blob, sent)
    for subject in subjects(record):
        for envelope in statements(store, subject):
            name = statement_name(subject, hashlib.sha256(envelope).hexdigest())
            total += _put(tier, Upload(name=name, source=envelope, size_bytes=len(envelope)))
    data = encode_record(record)
    name = record_name(record.kind, record.key)
    return total + _put(
        tier, Upload(name=name, source=data, size_bytes=len(data), links=record.blobs)
    )


def subjects(record: Record) -> tuple[str, ...]:
    """Return the digests of what statements may be about: an engine's bytes."""
    return tuple(blob.sha256 for blob in record.blobs) if record.kind == "engine" else ()


def weight(record: Record) -> int:
    """Return the bytes of a record's blobs."""
    return sum(blob.bytes for blob in record.blobs)


def _pull_blob(tier: Tier, store: Store, blob: Blob) -> bool:
    chunks = tier.get(blob_name(blob.sha256), blob.bytes)
    if chunks is None:
        return False
    fault = store.put_expected(blob, chunks)
    if fault:
        raise _damaged(tier.uri, blob_name(blob.sha256), fault)
    return True


def _push_blob(tier: Tier, store: Store, blob: Blob, sent: Callable[[int], None]) -> Sent:
    name = blob_name(blob.sha256)
    size_bytes = tier.size(name)
    if size_bytes == blob.bytes:
        sent(blob.bytes)
        return Sent(present=1)
    if size_bytes is not None:
        reason = f"it has {size_bytes} bytes, the blob has {blob.bytes}"
        raise _damaged(tier.uri, name, reason)
    try:
        path = store.verified_path(blob.sha256)
    except BlobLostError as error:
        raise StoreError(f"{error} (nothing was sent of it)") from error
    upload = Upload(name=name, source=path, size_bytes=blob.bytes, sent=sent)
    return _put(tier, upload)


def _put(tier: Tier, upload: Upload) -> Sent:
    if tier.put_new(upload):
        return Sent(objects=1, bytes=upload.size_bytes, won=True)
    return Sent(present=1)


def _damaged(where: str, name: str, reason: str) -> TierError:
    return TierError(
        f"{where}: {name}: not to be used: {reason}. Nothing of it was stored here; delete it "
        f"there, and push it again from a sound store"
    )
