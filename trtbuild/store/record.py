"""Records: small signed-shaped notes that say what was made for a key, and of which blobs.

A record file is a DSSE envelope (payload type, base64 payload, signatures: none yet) around the
canonical JSON of a :class:`Record`, with a checksum until signatures do its work. Reading is
strict: bytes that this module would not have written are refused.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime, timezone
from typing import TypeVar

import msgspec

from trtbuild.canonical import encode
from trtbuild.engine import Value
from trtbuild.errors import StoreError

T = TypeVar("T")

PAYLOAD_TYPE = "application/vnd.trtbuild.record.v1+json"
RECORD_SCHEMA = 1
MAX_RECORD_BYTES = 64 << 20
"""The manifest of an engine with 100,000 layers stays below; a larger file is not ours."""

OTHER_VERSION = "It was written by another version of trtbuild"

_PAYLOAD_SCHEMA = re.compile(r"application/vnd\.trtbuild\.record\.v([1-9][0-9]{0,3})\+json")
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BLOB_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Blob(Value, frozen=True, kw_only=True):
    """A stored file: the name it has in its record, its sha256 and its size."""

    name: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        """Refuse names and digests that a path must not be made of."""
        if not _BLOB_NAME.fullmatch(self.name):
            message = f"blob name {self.name!r}: expected 1 to 128 of A-Z a-z 0-9 . _ -"
            raise ValueError(message)
        check_digest(self.sha256)


class Record(Value, frozen=True, kw_only=True):
    """What was made for ``key``: the key's pre-image, the result's value and its blobs.

    ``kind`` is the namespace of the key (``engine``, ``ranges`` ...). ``preimage`` and
    ``value`` are canonical JSON; :func:`make_record` writes them, :meth:`read` and
    :meth:`read_preimage` read them. ``created`` is UTC, ``2026-01-31T12:00:00Z``.
    """

    kind: str
    key: str
    preimage: msgspec.Raw
    value: msgspec.Raw
    blobs: tuple[Blob, ...]
    created: str
    schema: int = RECORD_SCHEMA

    def __post_init__(self) -> None:
        """Refuse kinds and keys that a path must not be made of, and foreign schemas."""
        check_kind(self.kind)
        check_digest(self.key)
        if self.schema != RECORD_SCHEMA:
            message = f"record schema {self.schema}: this version reads {RECORD_SCHEMA}"
            raise ValueError(message)

    def read(self, shape: type[T]) -> T:
        """Return the value as ``shape``.

        A value of an earlier version is read as :meth:`Value.of_earlier` says.

        Raises:
            OtherShapeError: the value is of another shape, or lacks a field of it: a field that
                is missing is never replaced by its default.
        """
        return _read(self, self.value, shape)

    def read_preimage(self, shape: type[T]) -> T:
        """Return the pre-image of the key as ``shape``; raises as :meth:`read`."""
        return _read(self, self.preimage, shape)

    def blob(self, name: str) -> Blob:
        """Return the blob of this name.

        Raises:
            StoreError: the record names no such blob.
        """
        for blob in self.blobs:
            if blob.name == name:
                return blob
        names = ", ".join(blob.name for blob in self.blobs) or "none"
        message = (
            f"{self.kind} record {self.key[:12]} has no blob {name!r} (it has: {names}). "
            "It was written by another version of trtbuild: build again with a new --store"
        )
        raise StoreError(message)


class _Signature(Value, frozen=True, kw_only=True):
    """One signature over the payload; none is written by this version."""

    keyid: str
    sig: bytes


class _Envelope(
    Value, frozen=True, rename={"payload_type": "payloadType", "sha256": "payloadSha256"}
):
    """The file: ``payload`` is base64 in JSON, ``sha256`` is over type and payload."""

    payload: bytes
    payload_type: str
    sha256: str
    signatures: tuple[_Signature, ...]


class RecordError(ValueError):
    """The bytes are no record that this version would have written."""


class OtherShapeError(StoreError):
    """A whole record, whose value another version of trtbuild wrote: a miss, and it stays."""


class NewerRecordError(StoreError):
    """The bytes are a whole record of a later schema: not ours to read, nor to remove."""


def make_record(
    kind: str, key: str, preimage: object, value: object, blobs: tuple[Blob, ...] = ()
) -> Record:
    """Return the record of something made just now; ``preimage`` and ``value`` are values."""
    return Record(
        kind=kind,
        key=key,
        preimage=msgspec.Raw(encode(preimage)),
        value=msgspec.Raw(encode(value)),
        blobs=blobs,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def encode_record(record: Record) -> bytes:
    """Return the bytes of a record's file.

    Raises:
        ValueError: the record is too large, or its JSON would not survive a round trip.
    """
    payload = encode(record)
    envelope = _Envelope(
        payload=payload,
        payload_type=PAYLOAD_TYPE,
        sha256=_checksum(PAYLOAD_TYPE, payload),
        signatures=(),
    )
    data = encode(envelope)
    if len(data) > MAX_RECORD_BYTES:
        message = (
            f"{record.kind} record {record.key}: {len(data)} bytes; put the data in a blob"
        )
        raise ValueError(message)
    decode_record(data)
    return data


def decode_record(data: bytes) -> Record:
    """Return the record in the bytes of a file.

    Raises:
        NewerRecordError: a later version of trtbuild wrote them.
        RecordError: anything about them is not as :func:`encode_record` writes it.
    """
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        if envelope.sha256 != _checksum(envelope.payload_type, envelope.payload):
            message = "its payload does not match its checksum"
            raise RecordError(message)
        _check_type(envelope.payload_type)
        record = msgspec.json.decode(envelope.payload, type=Record)
        plain: object = msgspec.json.decode(envelope.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(str(error)) from error
    # One spelling per record: refuses missing and duplicate fields, white space, loose base64.
    if encode(envelope) != data or not encode(record) == encode(plain) == envelope.payload:
        message = "it is not in canonical form"
        raise RecordError(message)
    return record


def _check_type(payload_type: str) -> None:
    if is_newer(payload_type):
        message = f"a record of type {payload_type!r}, this version reads {PAYLOAD_TYPE!r}"
        raise NewerRecordError(message)
    if payload_type != PAYLOAD_TYPE:
        message = f"payload type {payload_type!r}, expected {PAYLOAD_TYPE!r}"
        raise RecordError(message)


def is_newer(payload_type: str) -> bool:
    """Tell whether a later version of trtbuild writes such records."""
    schema = _PAYLOAD_SCHEMA.fullmatch(payload_type)
    return schema is not None and int(schema[1]) > RECORD_SCHEMA


def is_digest(text: str) -> bool:
    """Tell whether ``text`` is 64 lower-case hex digits."""
    return _DIGEST.fullmatch(text) is not None


def check_digest(text: str) -> str:
    """Return ``text``; a ValueError says that it is not 64 lower-case hex digits."""
    if not is_digest(text):
        message = f"digest {text!r}: expected 64 lower-case hex digits"
        raise ValueError(message)
    return text


def check_kind(text: str) -> str:
    """Return ``text``; a ValueError says that it is no kind of record."""
    if not _KIND.fullmatch(text):
        message = f"record kind {text!r}: expected lower-case letters, digits and '-'"
        raise ValueError(message)
    return text


def _checksum(payload_type: str, payload: bytes) -> str:
    """Hash DSSE v1's pre-authentication encoding (secure-systems-lab/dsse, protocol.md)."""
    kind = payload_type.encode()
    prefix = b"DSSEv1 %d %b %d " % (len(kind), kind, len(payload))
    return hashlib.sha256(prefix + payload).hexdigest()


def _read(record: Record, raw: msgspec.Raw, shape: type[T]) -> T:
    if shape is object:
        return msgspec.json.decode(raw, type=shape)
    label = f"{record.kind} record {record.key[:12]}"
    remedy = (
        f"{OTHER_VERSION} and stays as it is. Run the command that made it again: this "
        "version's is stored beside it"
    )
    plain: object = msgspec.json.decode(raw)
    of_earlier = getattr(shape, "of_earlier", None)  # shapes may be no classes: dict[str, int]
    if isinstance(plain, dict) and of_earlier:
        filled = of_earlier(plain)
        raw = raw if filled is plain else msgspec.Raw(encode(filled))
        plain = filled
    try:
        decoded = msgspec.json.decode(raw, type=shape)
    except msgspec.ValidationError as error:
        message = f"{label}: its JSON is no {shape.__name__}: {error}. {remedy}"
        raise OtherShapeError(message) from error
    # Decoding fills a missing field with its default; writing it again shows that it did.
    if msgspec.json.decode(encode(decoded)) != plain:
        message = f"{label}: a field of {shape.__name__} is missing in it. {remedy}"
        raise OtherShapeError(message)
    return decoded
