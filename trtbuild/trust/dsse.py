"""DSSE v1 envelopes: a payload, its type, and signatures over both.

Format and pre-authentication encoding: secure-systems-lab/dsse, ``envelope.md`` and
``protocol.md``. The payload is not looked at before a signature over its very bytes holds.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Annotated

import msgspec

from trtbuild.canonical import encode
from trtbuild.engine import Value
from trtbuild.trust import strict_json
from trtbuild.trust.refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trtbuild.trust.keys import PrivateKey, PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_ENVELOPE_BYTES = 1 << 20
MAX_SIGNATURES = 16
SIGNATURE_BYTES = 64

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]


class _Signature(Value, frozen=True, kw_only=True):
    keyid: Sha256
    sig: str


class _File(Value, frozen=True, kw_only=True, rename={"payload_type": "payloadType"}):
    payload: str
    payload_type: str
    signatures: tuple[_Signature, ...]


class Envelope(Value, frozen=True, kw_only=True):
    """A payload and its signatures as (key id, signature), none of them checked yet."""

    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: type and payload, each after its length."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, keys: Iterable[PrivateKey]) -> bytes:
    """Return the envelope of an in-toto statement, signed by ``keys``."""
    message = pae(PAYLOAD_TYPE, payload)
    return encode_envelope(
        Envelope(
            payload=payload,
            signatures=tuple((key.public.keyid, key.sign(message)) for key in keys),
        )
    )


def encode_envelope(envelope: Envelope) -> bytes:
    """Return the bytes of an envelope's file."""
    signatures = tuple(
        _Signature(keyid=keyid, sig=base64.b64encode(sig).decode())
        for keyid, sig in envelope.signatures
    )
    return encode(
        _File(
            payload=base64.b64encode(envelope.payload).decode(),
            payload_type=PAYLOAD_TYPE,
            signatures=signatures,
        )
    )


def decode_envelope(data: bytes) -> Envelope:
    """Return the envelope in the bytes of a file; nothing of the payload is looked at.

    Raises:
        TrustError: T03, it is not exactly an envelope of an in-toto statement.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise _malformed(f"it has {len(data)} bytes, at most {MAX_ENVELOPE_BYTES} are read")
    try:
        file = strict_json.decode(data, _File)
        envelope = Envelope(
            payload=_unpacked(file.payload),
            signatures=tuple((each.keyid, _unpacked(each.sig)) for each in file.signatures),
        )
    except (strict_json.StrictError, binascii.Error) as error:
        raise _malformed(str(error)) from error
    if file.payload_type != PAYLOAD_TYPE:
        raise _malformed(f"its payload type is {file.payload_type[:64]!r}")
    if not 1 <= len(envelope.signatures) <= MAX_SIGNATURES:
        raise _malformed(f"it has {len(envelope.signatures)} signatures")
    if len({keyid for keyid, _ in envelope.signatures}) != len(envelope.signatures):
        raise _malformed("it has two signatures of one key")
    if any(len(sig) != SIGNATURE_BYTES for _, sig in envelope.signatures):
        raise _malformed("a signature does not have Ed25519's 64 bytes")
    return envelope


def signers(envelope: Envelope, keys: Iterable[PublicKey]) -> frozenset[str]:
    """Return the ids of those ``keys`` whose signatures over the payload's bytes hold.

    An id in the envelope only says which key to try; what counts is the key itself.
    """
    message = pae(PAYLOAD_TYPE, envelope.payload)
    claimed = dict(envelope.signatures)
    return frozenset(
        key.keyid
        for key in keys
        if key.keyid in claimed and key.holds(claimed[key.keyid], message)
    )


def _unpacked(text: str) -> bytes:
    data = base64.b64decode(text.encode("ascii", "replace"), validate=True)
    if base64.b64encode(data).decode() != text:
        message = "its base64 has bits that no encoder writes"
        raise binascii.Error(message)
    return data


def _malformed(problem: str) -> Exception:
    return refusal(
        "T03",
        f"a statement's envelope cannot be used, {problem}",
        f"DSSE v1 with {PAYLOAD_TYPE} and 1 to {MAX_SIGNATURES} Ed25519 signatures",
        "Sign the engine again: trtbuild promote ENGINE",
    )
