"""One record with its blobs and statements, from a tier or to one; everything is verified.

Blobs go before the record that names them, in both directions: what is visible is whole.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
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
from trtbuild.store.tiers.parts import (
    LostPartError,
    chunks_of,
    fetch_index,
    is_large,
    is_whole,
    links,
    send,
)
from trtbuild.store.tiers.tier import TierError, TooLargeError, Upload, read_small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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


def pull(
    tier: Tier,
    store: Store,
    kind: str,
    key: str,
    sent: Callable[[int], None] = lambda _: None,
) -> bool:
    """Bring the record of ``key`` with all it names from ``tier`` to ``store``.

    Returns False on a miss. A record with a lost blob is a miss too, and becomes an incident.

    Raises:
        TierError: the tier cannot tell, or what it sends is not to be used; no byte of that
            is visible in the store.
        StoreError: the store cannot be written.
    """
    record = fetch_record(tier, kind, key)
    return record is not None and bring(tier, store, record, sent)


def bring(
    tier: Tier,
    store: Store,
    record: Record,
    sent: Callable[[int], None] = lambda _: None,
    put: Callable[[Record], object] | None = None,
) -> bool:
    """Bring what a record of ``tier`` names to ``store``, and then the record; as :func:`pull`.

    ``sent`` is told the bytes that come. ``put`` stores the record: :meth:`Store.put`, unless
    the caller has another way.
    """
    with ThreadPoolExecutor(1) as beside:  # while the blobs come
        asked = beside.submit(_fetch_statements, tier, store, record)
        for blob in record.blobs:
            if not store.has(blob) and not _pull_blob(tier, store, blob, sent):
                store.note(
                    f"{tier.uri}/{blob_name(blob.sha256)}",
                    f"missing there, named by {record.kind} record {record.key}: push it again "
                    f"from a sound store, or delete that record",
                )
                return False
        for subject, envelope in asked.result():
            put_statement(store, subject, envelope)
    (put or store.put)(record)
    return True


def _fetch_statements(tier: Tier, store: Store, record: Record) -> list[tuple[str, bytes]]:
    """Return what ``store`` lacks of the statements in ``tier``, each with its subject.

    Whoever may write there could put anything beside the good ones: what is damaged or too
    large is passed over, and what would be too many to be looked at. Both become incidents.
    """
    found = []
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
        envelopes = (_fetch_statement(tier, store, name) for name in lacking[:room])
        found += [(subject, each) for each in envelopes if each is not None]
    return found


def _is_lacking(name: str, subject: str, known: set[str]) -> bool:
    sha256 = name.rpartition("/")[2]
    return is_digest(sha256) and sha256 not in known and name == statement_name(subject, sha256)


def _fetch_statement(tier: Tier, store: Store, name: str) -> bytes | None:
    """Return one statement; None where there is none, or one that is not to be used."""
    try:
        envelope = read_small(tier, name, MAX_STATEMENT_BYTES)
    except TooLargeError as error:
        store.note(f"{tier.uri}/{name}", f"passed over: {error}")
        return None
    if envelope is None or hashlib.sha256(envelope).hexdigest() == name.rpartition("/")[2]:
        return envelope
    store.note(f"{tier.uri}/{name}", "passed over: its bytes have another digest")
    return None


def push(
    tier: Tier, store: Store, record: Record, sent: Callable[[int], None] = lambda _: None
) -> Sent:
    """Send ``record`` with all it names to ``tier``; what is there already is not sent.

    Can be repeated after a kill at any point. ``sent`` is told the bytes that go.

    Raises:
        TierError: the tier cannot take it, or has something else under a blob's name.
        StoreError: a blob is lost here.
    """
    total, upload = _prepared(tier, store, record, sent)
    return total + _put(tier, upload)


def replace(tier: Tier, store: Store, record: Record, lost: Record) -> bool:
    """Put ``record`` in the place of one of its key whose blobs are ``lost``; False if not.

    Raises:
        TierError: the tier cannot take it.
    """
    _, upload = _prepared(tier, store, record, lambda _count: None)
    return tier.replace(upload, encode_record(lost))


def subjects(record: Record) -> tuple[str, ...]:
    """Return the digests of what statements may be about: an engine's bytes."""
    return tuple(blob.sha256 for blob in record.blobs) if record.kind == "engine" else ()


def weight(record: Record) -> int:
    """Return the bytes of a record's blobs."""
    return sum(blob.bytes for blob in record.blobs)


def _prepared(
    tier: Tier, store: Store, record: Record, sent: Callable[[int], None]
) -> tuple[Sent, Upload]:
    """Send all that ``record`` names; return what that took, and the record to be put."""
    total = Sent()
    held: list[Blob] = []
    for blob in record.blobs:
        done, named = _push_blob(tier, store, blob, sent)
        total += done
        held += named
    for subject in subjects(record):
        for envelope in statements(store, subject):
            name = statement_name(subject, hashlib.sha256(envelope).hexdigest())
            total += _put(tier, Upload(name=name, data=envelope))
    name = record_name(record.kind, record.key)
    return total, Upload(name=name, data=encode_record(record), links=tuple(held))


def _pull_blob(tier: Tier, store: Store, blob: Blob, sent: Callable[[int], None]) -> bool:
    index = fetch_index(tier, blob) if is_large(blob) else None
    name = blob_name(blob.sha256)
    chunks = tier.get(name, blob.bytes) if index is None else chunks_of(tier, index)
    if chunks is None:
        return False
    try:
        fault = store.put_expected(blob, _told(chunks, sent))
    except LostPartError:
        return False
    if fault:
        raise _damaged(tier.uri, name, fault)
    return True


def _told(
    chunks: Iterable[bytes | bytearray], sent: Callable[[int], None]
) -> Iterator[bytes | bytearray]:
    for chunk in chunks:
        sent(len(chunk))
        yield chunk


def _push_blob(
    tier: Tier, store: Store, blob: Blob, sent: Callable[[int], None]
) -> tuple[Sent, tuple[Blob, ...]]:
    """Send a blob; return what that took, and the objects that hold it."""
    index = fetch_index(tier, blob) if is_large(blob) else None
    if index is not None and is_whole(tier, index):
        sent(blob.bytes)
        return Sent(present=1), links(index)
    name = blob_name(blob.sha256)
    size_bytes = tier.size(name)
    if size_bytes == blob.bytes:
        sent(blob.bytes)
        return Sent(present=1), (blob,)
    if size_bytes is not None:
        reason = f"it has {size_bytes} bytes, the blob has {blob.bytes}"
        raise _damaged(tier.uri, name, reason)
    try:
        if is_large(blob):
            index, new = send(tier, store.verified_path(blob.sha256), blob, sent)
            size_bytes = sum(part.bytes for part in new)
            return Sent(objects=1, bytes=size_bytes), links(index)
        done = _put(tier, Upload(name=name, data=store.read(blob.sha256)))
    except BlobLostError as error:
        raise StoreError(f"{error} (nothing was sent of it)") from error
    sent(blob.bytes)
    return done, (blob,)


def _put(tier: Tier, upload: Upload) -> Sent:
    if tier.put_new(upload):
        return Sent(objects=1, bytes=len(upload.data), won=True)
    return Sent(present=1)


def _damaged(where: str, name: str, reason: str) -> TierError:
    return TierError(
        f"{where}: {name}: not to be used: {reason}. Nothing of it was stored here; delete it "
        f"there, and push it again from a sound store"
    )
