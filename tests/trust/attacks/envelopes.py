"""Attacks by envelopes and signatures: their form, how they were made, and by whom."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.trust.attacks.cases import add, add_all, case, promoters, ruled, tried
from tests.trust.forge import (
    BUILDER,
    NARROW,
    POLICY,
    PROMOTER,
    SECOND_PROMOTER,
    SEQ,
    STRANGER,
)
from trtbuild.canonical import encode
from trtbuild.trust import dsse

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.trust.attacks.cases import Make
    from tests.trust.forge import Attempt, Doc, Forge
    from trtbuild.trust.keys import PrivateKey

ORDER_L = 2**252 + 27742317777372353535851937790883648493
"""The order of Ed25519's group (RFC 8032, section 5.1)."""

# T03, envelopes


def rewritten(change: Callable[[bytes], bytes]) -> Make:
    """Return tries in which the file of the release's envelope has other bytes."""

    def make(f: Forge) -> Attempt:
        good = f.attempt()
        return replace(good, envelopes=[*good.envelopes[:2], change(good.envelopes[2])])

    return make


def shaped(change: Callable[[Doc], object]) -> Make:
    """Return tries in which the envelope of the release has another shape."""

    def rewrite(data: bytes) -> bytes:
        envelope: Doc = json.loads(data)
        change(envelope)
        return encode(envelope)

    return rewritten(rewrite)


def signature(change: Callable[[Doc], object]) -> Callable[[Doc], object]:
    """Return a change of the envelope's first signature."""
    return lambda e: change(e["signatures"][0])


def many(count: int) -> Callable[[Doc], object]:
    """Return what adds so many signatures to an envelope."""
    sig = base64.b64encode(b"s" * 64).decode()
    return lambda e: e["signatures"].extend(
        {"keyid": f"{n:064x}", "sig": sig} for n in range(count)
    )


def spare_bits(text: str) -> str:
    """Return base64 of the same bytes whose last character says more than a byte needs."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    end = text.rstrip("=")
    other = end[:-1] + letters[letters.index(end[-1]) + 1] + text[len(end) :]
    assert text.endswith("=")
    assert base64.b64decode(other) == base64.b64decode(text)
    return other


SHAPES: dict[str, Callable[[Doc], object]] = {
    "four_thousand_signatures": many(4_000),
    "seventeen_signatures": many(16),
    "no_signature": lambda e: e["signatures"].clear(),
    "one_key_twice": lambda e: e["signatures"].append(dict(e["signatures"][0])),
    "unknown_field_in_envelope": lambda e: e.update(alg="none"),
    "algorithm_in_a_signature": signature(lambda s: s.update(alg="HS256")),
    "payload_type_swapped": lambda e: e.update(payloadType="text/plain"),
    "payload_type_of_our_records": lambda e: e.update(
        payloadType="application/vnd.trtbuild.record.v1+json"
    ),
    "signature_too_short": signature(
        lambda s: s.update(sig=base64.b64encode(b"s" * 63).decode())
    ),
    "signature_that_is_no_base64": signature(lambda s: s.update(sig="%")),
    "keyid_in_capitals": signature(lambda s: s.update(keyid=s["keyid"].upper())),
    "payload_with_a_line_break": lambda e: e.update(
        payload=e["payload"][:8] + "\n" + e["payload"][8:]
    ),
    "signature_with_spare_bits": signature(lambda s: s.update(sig=spare_bits(s["sig"]))),
    "payload_without_padding": lambda e: e.update(payload=e["payload"].rstrip("=") + "A"),
    "payload_that_is_a_list": lambda e: e.update(payload=[e["payload"]]),
}
add_all("T03", **{name: shaped(change) for name, change in SHAPES.items()})

BYTES: dict[str, Callable[[bytes], bytes]] = {
    "two_payloads": lambda data: data.replace(
        b'{"payload":', b'{"payload":"e30=","payload":', 1
    ),
    "two_signature_lists": lambda data: data[:-1] + b',"signatures":[]}',
    "cut_short": lambda data: data[:-1],
    "something_behind": lambda data: data + b"{}",
    "not_utf8": lambda data: data.replace(b"payloadType", b"payload\xff", 1),
    "empty_envelope": lambda _: b"",
    "a_list": lambda data: b"[" + data + b"]",
    "nested_a_thousand_deep": lambda _: b"[" * 1000 + b"]" * 1000,
}
add_all("T03", **{name: rewritten(change) for name, change in BYTES.items()})

# Beyond a mebibyte the store hands nothing out, and the release is missing.
add("T04", "ten_thousand_signatures", shaped(many(10_000)))
add("T04", "larger_than_a_mebibyte", shaped(lambda e: e.update(payload="A" * (1 << 20))))


@case("T03")
def a_thousand_statements_beside_it(f: Forge) -> Attempt:
    good = f.attempt()
    return replace(good, envelopes=[*good.envelopes, *(b"%d" % n for n in range(1100))])


# T04, how it was signed


def with_signature(sign: Callable[[bytes], bytes]) -> Make:
    """Return tries whose release carries the promoter's id and a signature of another make."""

    def make(f: Forge) -> Attempt:
        payloads = f.payloads()
        good = f.attempt(payloads)
        made = (PROMOTER.public.keyid, sign(payloads["release"]))
        envelope = dsse.Envelope(payload=payloads["release"], signatures=(made,))
        return replace(good, envelopes=[*good.envelopes[:2], dsse.encode_envelope(envelope)])

    return make


def encoded(payload: bytes) -> bytes:
    """Return what is signed of a payload."""
    return dsse.pae(dsse.PAYLOAD_TYPE, payload)


def malleable(payload: bytes) -> bytes:
    made = PROMOTER.sign(encoded(payload))
    s = int.from_bytes(made[32:], "little") + ORDER_L
    return made[:32] + s.to_bytes(32, "little")


def of_p256(payload: bytes) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    signed = key.sign(encoded(payload), ec.ECDSA(hashes.SHA256()))
    return b"".join(part.to_bytes(32, "big") for part in decode_dss_signature(signed))


def moved_border(payload: bytes) -> bytes:
    """Sign a type that ends with the payload's first byte: equal bytes but for the lengths."""
    kind = dsse.PAYLOAD_TYPE.encode() + payload[:1]
    return PROMOTER.sign(
        b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload) - 1, payload[1:])
    )


SIGNATURES: dict[str, Callable[[bytes], bytes]] = {
    "signed_without_pae": PROMOTER.sign,
    "signed_as_another_type": lambda data: PROMOTER.sign(dsse.pae("text/plain", data)),
    "signed_with_the_border_moved": moved_border,
    "signed_with_the_length_left_out": lambda data: PROMOTER.sign(
        b"DSSEv1 " + dsse.PAYLOAD_TYPE.encode() + b" " + data
    ),
    "signed_its_base64": lambda data: PROMOTER.sign(encoded(base64.b64encode(data))),
    "signed_its_digest": lambda data: PROMOTER.sign(encoded(hashlib.sha256(data).digest())),
    "signature_of_another_payload": lambda _: PROMOTER.sign(encoded(b"{}")),
    "keyid_of_a_trusted_key_on_a_strangers_signature": lambda d: STRANGER.sign(encoded(d)),
    "zeros_for_a_signature": lambda _: bytes(64),
    "malleable_signature": malleable,
    "ecdsa_for_ed25519": of_p256,
    "hmac_keyed_with_the_public_key": lambda data: hmac.digest(
        PROMOTER.public.spki, encoded(data), "sha512"
    ),
}
add_all("T04", **{name: with_signature(sign) for name, sign in SIGNATURES.items()})

# T04, by whom


def malformed(who: PrivateKey) -> Make:
    """Return tries whose one statement is no statement."""
    return tried(envelopes=[dsse.seal(b"{", (who,))])


def signed_by(**signers: tuple[PrivateKey, ...]) -> Make:
    return lambda f: f.attempt(None, **signers)


def beside_a_good_one(make: Make) -> Make:
    """Return tries with one release more, where two promoters must sign."""

    def both(f: Forge) -> Attempt:
        good, other = f.attempt(), make(f)
        envelopes = [*good.envelopes, other.envelopes[2]]
        return replace(good, envelopes=envelopes, policy=promoters(2))

    return both


def of_later(f: Forge) -> Attempt:
    payloads = f.payloads(lambda d: d["release"]["predicate"].update(seq=SEQ + 1))
    return f.attempt(payloads, release=(SECOND_PROMOTER,))


add_all(
    "T04",
    release_of_a_stranger=signed_by(release=(STRANGER,)),
    all_of_a_stranger=signed_by(
        **dict.fromkeys(("provenance", "gates", "release"), (STRANGER,))
    ),
    builder_promotes_itself=signed_by(release=(BUILDER,)),
    key_of_another_namespace=signed_by(provenance=(NARROW,)),
    gates_of_another_namespace=signed_by(gates=(NARROW,)),
    malformed_statement_of_a_stranger=malformed(STRANGER),
    key_of_another_namespace_releases_where_no_promoter_is_needed=tried(
        signed_by(release=(NARROW,)), policy=promoters(0)
    ),
    promoter_builds=signed_by(provenance=(PROMOTER,)),
    promoter_judges=signed_by(gates=(PROMOTER,)),
    threshold_of_two_with_one_promoter=tried(policy=promoters(2)),
    threshold_of_two_with_one_promoter_in_two_envelopes=beside_a_good_one(
        signed_by(release=(PROMOTER, STRANGER))
    ),
    two_promoters_of_two_different_releases=beside_a_good_one(of_later),
    two_builders_needed=tried(policy=ruled("builders = 2")),
    model_without_a_rule=tried(policy=POLICY.replace('names = ["*"]', 'names = ["other"]')),
)
add("T05", "malformed_statement_of_a_trusted_key", malformed(PROMOTER))
