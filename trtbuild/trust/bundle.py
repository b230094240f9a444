"""Sigstore bundles of our statements, for tools that read nothing else.

Format: ``sigstore/protobuf-specs``, ``sigstore_bundle.proto``, media type v0.3: a DSSE envelope
with exactly one signature, and a hint at the public key, which the verifier must already have.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from trtbuild.canonical import encode
from trtbuild.errors import TrustError
from trtbuild.trust.dsse import PAYLOAD_TYPE, decode_envelope
from trtbuild.trust.statements import payload_digest

if TYPE_CHECKING:
    from collections.abc import Iterable

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def bundles(envelopes: Iterable[bytes]) -> dict[str, bytes]:
    """Return the bundles by file name, one per signature; what is no envelope is left out."""
    found = {}
    for data in envelopes:
        try:
            envelope = decode_envelope(data)
        except TrustError:
            continue
        payload = base64.b64encode(envelope.payload).decode()
        for keyid, sig in envelope.signatures:
            signature = {"sig": base64.b64encode(sig).decode(), "keyid": keyid}
            name = f"{payload_digest(envelope.payload)[:16]}-{keyid[:8]}.sigstore.json"
            found[name] = encode(
                {
                    "mediaType": MEDIA_TYPE,
                    "verificationMaterial": {"publicKey": {"hint": keyid}, "tlogEntries": []},
                    "dsseEnvelope": {
                        "payload": payload,
                        "payloadType": PAYLOAD_TYPE,
                        "signatures": [signature],
                    },
                }
            )
    return found
