"""Attacks on the load of an engine, each with the code that must refuse it.

Run as a program it tries all of them with ``trtbuild.load`` and prints what happened, with the
sessions that the process opened and the children that it started meanwhile:
``python -m tests.trust.corpus STORE FOLDER``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import onnxruntime as ort
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

import trtbuild
from tests.trust.forge import (
    BUILDER,
    HEAD,
    KEYS,
    MODEL,
    NARROW,
    NOW,
    POLICY,
    PROMOTER,
    SECOND_PROMOTER,
    SEQ,
    STRANGER,
    forge,
    table,
)
from trtbuild.canonical import encode
from trtbuild.errors import TrtbuildError
from trtbuild.runtime.made_here import mark_made
from trtbuild.store import make_record
from trtbuild.store.resolve import Plan
from trtbuild.store.statements import put_statement
from trtbuild.trust import dsse
from trtbuild.trust.statements import second

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.trust.forge import (
        Attempt,
        Doc,
        Forge,
    )
    from trtbuild.engine import Manifest
    from trtbuild.store import Blob
    from trtbuild.trust.keys import PrivateKey

LOCAL = 'unsigned = "local"\n' + HEAD + KEYS
Make: TypeAlias = "Callable[[Forge], Attempt]"
CASES: dict[str, tuple[str, Make]] = {}

ORDER_L = 2**252 + 27742317777372353535851937790883648493
"""The order of Ed25519's group (RFC 8032, section 5.1)."""


def case(
    code: str,
) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        CASES[make.__name__] = (code, make)
        return make

    return add


def add(code: str, name: str, make: Make) -> None:
    if name in CASES:
        message = f"two cases are called {name}"
        raise ValueError(message)
    CASES[name] = (code, make)


def with_line(line: str) -> str:
    """Return the policy with one line more in its table of models."""
    return POLICY.replace("promoters = 1", f"promoters = 1\n{line}")


# T01, the policy


def under(policy: str) -> Make:
    return lambda f: replace(f.attempt(), policy=policy)


POLICIES: dict[str, str] = {
    "unknown_key_in_policy": "allow = true\n" + POLICY,
    "no_schema": POLICY.replace("schema = 1\n", ""),
    "schema_of_the_future": POLICY.replace("schema = 1", "schema = 2"),
    "not_toml": POLICY + "[[keys]\n",
    "unknown_word_for_unsigned": 'unsigned = "allow"\n' + POLICY,
    "one_key_with_two_roles": POLICY + table("again", BUILDER, "promoter"),
    "range_that_is_none": POLICY.replace(
        "promoters = 1\n", 'promoters = 1\nbackends = {onnxruntime = "new"}\n'
    ),
    "no_builder_needed": POLICY.replace("promoters = 1\n", "promoters = 1\nbuilders = 0\n"),
    "revokes_nothing": POLICY + "[[revoked]]\n",
    "pattern_with_a_slash": POLICY + table("slash", STRANGER, "builder", "../*"),
    "key_of_another_algorithm": POLICY
    + table("rsa", STRANGER, "builder").replace(
        STRANGER.public.text,
        base64.b64encode(
            rsa.generate_private_key(public_exponent=65537, key_size=2048)
            .public_key()
            .public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        ).decode(),
    ),
}
for _name, _text in POLICIES.items():
    add("T01", _name, under(_text))


@case("T01")
def policy_that_others_may_write(f: Forge) -> Attempt:
    return replace(f.attempt(), policy_mode=0o666)


# T02, the lockfile


def locked(f: Forge, *, engine: str = "", model: str = MODEL, seq: int = SEQ) -> str:
    target = str(f.candidate.preimage.target)
    return (
        f'schema = 1\n[engines."{model}"."{target}"]\n'
        f'engine = "{engine or f.candidate.sha256}"\nseq = {seq}\n'
    )


@case("T02")
def engine_that_the_lock_does_not_pin(f: Forge) -> Attempt:
    return replace(f.attempt(), lock=locked(f, engine="d" * 64))


@case("T02")
def pinned_digest_under_which_another_engine_stands(f: Forge) -> Attempt:
    pin = f.manifest.sha256
    data = f.store.read(pin) + b"\xa2\x06\x01x"  # a field that readers skip
    lock = locked(f)
    next((f.store.top / "ac" / "plan").rglob(pin)).unlink()
    f.use(f.record_of(f.manifest, pin, data))
    return replace(f.attempt(), engine=MODEL, lock=lock)


@case("T08")
def pinned_digest_whose_plan_names_another_engine(f: Forge) -> Attempt:
    pin = f.manifest.sha256
    lock = locked(f)
    data = f.store.read(pin) + b"\xa2\x06\x01x"
    f.put(msgspec.structs.replace(f.manifest, preimage=rekeyed(f)), data)
    next((f.store.top / "ac" / "plan").rglob(pin)).unlink()
    f.store.put(make_record("plan", pin, {}, Plan(engine_key=f.record.key)))
    return replace(f.attempt(), engine=MODEL, lock=lock)


@case("T02")
def lock_for_another_target(f: Forge) -> Attempt:
    target = str(f.candidate.preimage.target)
    lock = locked(f).replace(target, "onnxruntime:other")
    return replace(f.attempt(), engine=MODEL, lock=lock)


def with_lock(text: Callable[[Forge], str]) -> Make:
    return lambda f: replace(f.attempt(), lock=text(f))


LOCKS: dict[str, Callable[[Forge], str]] = {
    "lock_without_schema": lambda f: locked(f).replace("schema = 1\n", ""),
    "lock_with_unknown_field": lambda f: locked(f) + "trust = true\n",
    "lock_with_a_path_as_model": lambda f: locked(f, model="../m"),
    "lock_with_a_short_digest": lambda f: locked(f, engine="abc"),
    "lock_with_a_negative_seq": lambda f: locked(f, seq=-1),
    "lock_that_is_no_toml": lambda _: "{",
    "empty_lock": lambda _: "",
}
for _name, _lock in LOCKS.items():
    add("T02", _name, with_lock(_lock))


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


def many(count: int) -> list[Doc]:
    return [
        {"keyid": f"{n:064x}", "sig": base64.b64encode(b"s" * 64).decode()}
        for n in range(count)
    ]


def spare_bits(text: str) -> str:
    """Return base64 of the same bytes whose last character says more than a byte needs."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    end = text.rstrip("=")
    other = end[:-1] + letters[letters.index(end[-1]) + 1] + text[len(end) :]
    assert text.endswith("=")
    assert base64.b64decode(other) == base64.b64decode(text)
    return other


SHAPES: dict[str, Callable[[Doc], object]] = {
    "four_thousand_signatures": lambda e: e["signatures"].extend(many(4_000)),
    "seventeen_signatures": lambda e: e["signatures"].extend(many(16)),
    "no_signature": lambda e: e["signatures"].clear(),
    "one_key_twice": lambda e: e["signatures"].append(dict(e["signatures"][0])),
    "unknown_field_in_envelope": lambda e: e.update(alg="none"),
    "algorithm_in_a_signature": lambda e: e["signatures"][0].update(alg="HS256"),
    "payload_type_swapped": lambda e: e.update(payloadType="text/plain"),
    "payload_type_of_our_records": lambda e: e.update(
        payloadType="application/vnd.trtbuild.record.v1+json"
    ),
    "signature_too_short": lambda e: e["signatures"][0].update(
        sig=base64.b64encode(b"s" * 63).decode()
    ),
    "signature_that_is_no_base64": lambda e: e["signatures"][0].update(sig="%"),
    "keyid_in_capitals": lambda e: e["signatures"][0].update(
        keyid=e["signatures"][0]["keyid"].upper()
    ),
    "payload_with_a_line_break": lambda e: e.update(
        payload=e["payload"][:8] + "\n" + e["payload"][8:]
    ),
    "signature_with_spare_bits": lambda e: e["signatures"][0].update(
        sig=spare_bits(e["signatures"][0]["sig"])
    ),
    "payload_without_padding": lambda e: e.update(payload=e["payload"].rstrip("=") + "A"),
    "payload_that_is_a_list": lambda e: e.update(payload=[e["payload"]]),
}
for _name, _shape in SHAPES.items():
    add("T03", _name, shaped(_shape))

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
for _name, _bytes in BYTES.items():
    add("T03", _name, rewritten(_bytes))


# Beyond a mebibyte the store hands nothing out, and the release is missing.
add(
    "T04",
    "ten_thousand_signatures",
    shaped(lambda e: e["signatures"].extend(many(10_000))),
)
add(
    "T04",
    "larger_than_a_mebibyte",
    shaped(lambda e: e.update(payload="A" * (1 << 20))),
)


@case("T03")
def a_thousand_statements_beside_it(f: Forge) -> Attempt:
    good = f.attempt()
    return replace(good, envelopes=[*good.envelopes, *(b"%d" % n for n in range(1100))])


# T04, signatures


def with_signature(sign: Callable[[bytes], bytes]) -> Make:
    """Return tries whose release carries the promoter's id and a signature of another make."""

    def make(f: Forge) -> Attempt:
        payloads = f.payloads()
        good = f.attempt(payloads)
        signature = (PROMOTER.public.keyid, sign(payloads["release"]))
        envelope = dsse.Envelope(payload=payloads["release"], signatures=(signature,))
        return replace(good, envelopes=[*good.envelopes[:2], dsse.encode_envelope(envelope)])

    return make


def malleable(payload: bytes) -> bytes:
    signature = PROMOTER.sign(dsse.pae(dsse.PAYLOAD_TYPE, payload))
    s = int.from_bytes(signature[32:], "little") + ORDER_L
    return signature[:32] + s.to_bytes(32, "little")


def of_p256(payload: bytes) -> bytes:
    signed = ec.generate_private_key(ec.SECP256R1()).sign(
        dsse.pae(dsse.PAYLOAD_TYPE, payload), ec.ECDSA(hashes.SHA256())
    )
    return b"".join(part.to_bytes(32, "big") for part in decode_dss_signature(signed))


def hmac_with_the_public_key(payload: bytes) -> bytes:
    message = dsse.pae(dsse.PAYLOAD_TYPE, payload)
    return hmac.new(PROMOTER.public.spki, message, hashlib.sha512).digest()


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
    "signed_its_base64": lambda data: PROMOTER.sign(
        dsse.pae(dsse.PAYLOAD_TYPE, base64.b64encode(data))
    ),
    "signed_its_digest": lambda data: PROMOTER.sign(
        dsse.pae(dsse.PAYLOAD_TYPE, hashlib.sha256(data).digest())
    ),
    "signature_of_another_payload": lambda _: PROMOTER.sign(dsse.pae(dsse.PAYLOAD_TYPE, b"{}")),
    "keyid_of_a_trusted_key_on_a_strangers_signature": lambda data: STRANGER.sign(
        dsse.pae(dsse.PAYLOAD_TYPE, data)
    ),
    "zeros_for_a_signature": lambda _: bytes(64),
    "malleable_signature": malleable,
    "ecdsa_for_ed25519": of_p256,
    "hmac_keyed_with_the_public_key": hmac_with_the_public_key,
}
for _name, _sign in SIGNATURES.items():
    add("T04", _name, with_signature(_sign))


def malformed(f: Forge, who: PrivateKey) -> Attempt:
    """Return a try whose one statement is no statement."""
    return replace(f.attempt(), envelopes=[dsse.seal(b"{", (who,))])


def signed_by(**signers: tuple[PrivateKey, ...]) -> Make:
    return lambda f: f.attempt(None, **signers)


add("T04", "release_of_a_stranger", signed_by(release=(STRANGER,)))
add(
    "T04",
    "all_of_a_stranger",
    signed_by(**dict.fromkeys(("provenance", "gates", "release"), (STRANGER,))),
)
add("T04", "builder_promotes_itself", signed_by(release=(BUILDER,)))
add("T04", "key_of_another_namespace", signed_by(provenance=(NARROW,)))
add("T04", "gates_of_another_namespace", signed_by(gates=(NARROW,)))
add("T04", "malformed_statement_of_a_stranger", lambda f: malformed(f, STRANGER))
add(
    "T04",
    "key_of_another_namespace_releases_where_no_promoter_is_needed",
    lambda f: replace(
        f.attempt(None, release=(NARROW,)),
        policy=POLICY.replace("promoters = 1", "promoters = 0"),
    ),
)
add("T04", "promoter_builds", signed_by(provenance=(PROMOTER,)))
add("T04", "promoter_judges", signed_by(gates=(PROMOTER,)))


@case("T04")
def threshold_of_two_with_one_promoter(f: Forge) -> Attempt:
    return replace(f.attempt(), policy=POLICY.replace("promoters = 1", "promoters = 2"))


@case("T04")
def threshold_of_two_with_one_promoter_in_two_envelopes(f: Forge) -> Attempt:
    good = f.attempt()
    other = f.attempt(None, release=(PROMOTER, STRANGER))
    policy = POLICY.replace("promoters = 1", "promoters = 2")
    return replace(good, envelopes=[*good.envelopes, other.envelopes[2]], policy=policy)


@case("T04")
def two_promoters_of_two_different_releases(f: Forge) -> Attempt:
    good = f.attempt()
    other = f.attempt(
        f.payloads(lambda d: d["release"]["predicate"].update(seq=SEQ + 1)),
        release=(SECOND_PROMOTER,),
    )
    policy = POLICY.replace("promoters = 1", "promoters = 2")
    return replace(good, envelopes=[*good.envelopes, other.envelopes[2]], policy=policy)


@case("T04")
def two_builders_needed(f: Forge) -> Attempt:
    return replace(
        f.attempt(), policy=POLICY.replace("promoters = 1", "promoters = 1\nbuilders = 2")
    )


@case("T04")
def model_without_a_rule(f: Forge) -> Attempt:
    return replace(f.attempt(), policy=POLICY.replace('names = ["*"]', 'names = ["other"]'))


# T05, statements


def of_release(**changes: object) -> Make:
    return lambda f: f.changed(lambda docs: docs["release"]["predicate"].update(changes))


def in_release(change: Callable[[Doc], object]) -> Make:
    return lambda f: f.changed(lambda docs: change(docs["release"]))


for _name, _make in {
    "unknown_predicate_type": in_release(lambda s: s.update(predicateType="urn:other")),
    "predicate_type_that_is_no_text": in_release(lambda s: s.update(predicateType=["a"])),
    "statement_of_version_0_1": in_release(
        lambda s: s.update({"_type": "https://in-toto.io/Statement/v0.1"})
    ),
    "unknown_field_in_statement": in_release(lambda s: s.update(note="x")),
    "unknown_field_in_release": of_release(force=True),
    "missing_field": in_release(lambda s: s["predicate"].pop("expires")),
    "predicate_that_is_no_object": in_release(lambda s: s.update(predicate=[])),
    "model_that_is_a_path": of_release(model="../../etc"),
    "model_with_a_line_break": of_release(model=f"{MODEL}\n"),
    "empty_model": of_release(model=""),
    "target_that_is_a_path": of_release(target="onnxruntime:../x"),
    "seq_of_zero": of_release(seq=0),
    "seq_that_is_true": of_release(seq=True),
    "seq_that_is_a_fraction": of_release(seq=1000.5),
    "seq_as_text": of_release(seq="1000"),
    "no_such_day": of_release(expires="2099-02-30T00:00:00Z"),
    "made_on_no_such_day": of_release(created="2026-02-30T00:00:00Z"),
    "time_with_an_offset": of_release(expires="2099-01-01T00:00:00+00:00"),
    "digest_in_capitals": of_release(gates="A" * 64),
    "no_manifest_among_the_subjects": in_release(lambda s: s["subject"].pop()),
    "three_subjects": in_release(lambda s: s["subject"].append(dict(s["subject"][0]))),
    "two_engines_as_subjects": in_release(lambda s: s["subject"][1].update(name="engine")),
    "subject_with_another_algorithm": in_release(
        lambda s: s["subject"][0].update(digest={"md5": "0" * 32})
    ),
}.items():
    add("T05", _name, _make)


NUMBER = b'"seq":%d' % SEQ


def respelled(change: Callable[[bytes], bytes]) -> Make:
    return lambda f: f.respelled("release", change)


for _name, _make in {
    "duplicate_key_in_payload": respelled(
        lambda p: p.replace(b'"seq":', b'"seq":999999,"seq":', 1)
    ),
    "duplicate_key_spelled_with_an_escape": respelled(
        lambda p: p.replace(b'"seq":', b'"s\\u0065q":999999,"seq":', 1)
    ),
    "nested_too_deep": respelled(
        lambda p: p.replace(NUMBER, b'"seq":' + b"[" * 33 + b"]" * 33, 1)
    ),
    "integer_beyond_a_double": respelled(
        lambda p: p.replace(NUMBER, b'"seq":9007199254740993', 1)
    ),
    "ten_thousand_digits": respelled(lambda p: p.replace(NUMBER, b'"seq":' + b"9" * 10_000, 1)),
    "not_a_number": respelled(lambda p: p.replace(NUMBER, b'"seq":NaN', 1)),
    "infinite_number": respelled(lambda p: p.replace(NUMBER, b'"seq":1e999', 1)),
    "invalid_utf8_in_payload": respelled(
        lambda p: p.replace(b"classifier", b"classifi\xff", 1)
    ),
    "unpaired_surrogate": respelled(lambda p: p.replace(b"classifier", b"\\ud800", 1)),
    "byte_order_mark": respelled(lambda p: b"\xef\xbb\xbf" + p),
    "payload_that_is_empty": respelled(lambda _: b""),
    "payload_that_is_text": respelled(lambda _: b"hello"),
    "payload_that_is_null": respelled(lambda _: b"null"),
}.items():
    add("T05", _name, _make)


add("T05", "malformed_statement_of_a_trusted_key", lambda f: malformed(f, PROMOTER))


# T06 and T07, replay


@case("T06")
def older_than_what_was_loaded(f: Forge) -> Attempt:
    place = f"{MODEL}/{f.candidate.preimage.target}/{f.candidate.precision}"
    return replace(f.attempt(), seen=remembered(place, SEQ + 1))


def remembered(place: str, seq: int, *keys: PrivateKey) -> bytes:
    """Return the bytes of a memory of one release."""
    keyids = [key.public.keyid for key in keys or (PROMOTER,)]
    return encode({"schema": 2, "releases": {place: {"seq": seq, "keys": keyids}}})


@case("T06")
def older_than_what_an_earlier_version_loaded(f: Forge) -> Attempt:
    place = f"{MODEL}/{f.candidate.preimage.target}"
    return replace(f.attempt(), seen=encode({"schema": 1, "releases": {place: SEQ + 1}}))


@case("T06")
def older_than_what_a_revoked_key_signed_with_another(f: Forge) -> Attempt:
    place = f"{MODEL}/{f.candidate.preimage.target}/{f.candidate.precision}"
    seen = remembered(place, SEQ + 1, STRANGER, SECOND_PROMOTER)
    policy = f'{POLICY}[[revoked]]\nkey = "{STRANGER.public.keyid}"\n'
    return replace(f.attempt(), seen=seen, policy=policy)


@case("T06")
def older_than_the_lock(f: Forge) -> Attempt:
    return replace(f.attempt(), lock=locked(f, seq=SEQ + 1))


add("T07", "expired", of_release(expires=second(NOW - timedelta(seconds=1))))
add("T07", "from_the_future", of_release(created=second(NOW + timedelta(minutes=30))))
add("T07", "largest_number", of_release(seq=2**53 - 1))
add("T07", "number_of_tomorrow", of_release(seq=SEQ + 86400))
add("T07", "number_of_another_time_than_its_making", of_release(seq=SEQ - 86400))


@case("T07")
def too_old_for_the_policy(f: Forge) -> Attempt:
    old = NOW - timedelta(days=8)
    attempt = of_release(created=second(old), seq=int(old.timestamp()))(f)
    return replace(
        attempt, policy=POLICY.replace("promoters = 1", "promoters = 1\nmax_age_days = 7")
    )


# T08, parts that do not belong together


def other_subject(name: str, index: int) -> Make:
    return lambda f: f.changed(
        lambda docs: docs[name]["subject"][index]["digest"].update(sha256="e" * 64)
    )


for _name in ("provenance", "gates", "release"):
    add("T08", f"{_name}_of_another_engine", other_subject(_name, 0))
    add("T08", f"{_name}_of_another_manifest", other_subject(_name, 1))
add("T08", "release_of_another_key", of_release(key="e" * 64))
add("T08", "release_for_another_target", of_release(target="onnxruntime:other"))


@case("T08")
def model_that_the_lock_does_not_mean(f: Forge) -> Attempt:
    return replace(f.attempt(), lock=locked(f, model="other"))


def signed_as(model: str, make: Callable[[Forge, dict[str, bytes]], Attempt]) -> Make:
    """Return tries whose engine was signed as another model than it was built as."""

    def change(docs: Doc) -> None:
        docs["release"]["predicate"]["model"] = model
        definition = docs["provenance"]["predicate"]["buildDefinition"]
        definition["externalParameters"]["model"] = model

    return lambda f: make(f, f.payloads(change))


add("T08", "signed_as_another_model", signed_as("x", lambda f, p: f.attempt(p)))
add(
    "T08",
    "builder_that_chooses_a_rule_without_promoters",
    signed_as(
        "x",
        lambda f, p: replace(
            f.attempt(p, release=(BUILDER,)),
            policy=POLICY.replace('names = ["*"]', f'names = ["{MODEL}"]')
            + '[[models]]\nnames = ["*"]\n',
        ),
    ),
)
add(
    "T08",
    "key_of_another_namespace_that_signs_in_its_own",
    signed_as(
        "other-1",
        lambda f, p: replace(
            f.attempt(p, **dict.fromkeys(("provenance", "gates", "release"), (NARROW,))),
            policy=POLICY.replace("promoters = 1", "promoters = 0"),
        ),
    ),
)
add("T08", "another_model_is_asked_for", lambda f: replace(f.attempt(), model="other"))
add(
    "T02",
    "another_model_is_asked_for_than_is_pinned",
    lambda f: replace(f.attempt(), model="other", lock=locked(f)),
)


@case("T08")
def record_under_a_foreign_key(f: Forge) -> Attempt:
    good, name = f.attempt(), "f" * 64
    f.store.put(make_record("engine", name, f.manifest.preimage, f.manifest, f.record.blobs))
    return replace(good, engine=name)


@case("T08")
def record_whose_manifest_lies_about_its_key(f: Forge) -> Attempt:
    good, name = f.attempt(), "f" * 64
    manifest = msgspec.structs.replace(f.manifest, key=name)
    f.store.put(make_record("engine", name, manifest.preimage, manifest, f.record.blobs))
    return replace(good, engine=name)


@case("T08")
def signed_record_whose_manifest_has_another_key(f: Forge) -> Attempt:
    name = rekeyed(f).digest
    manifest = msgspec.structs.replace(f.manifest, key="f" * 64, preimage=rekeyed(f))
    return replace(signed_record(f, manifest, name), engine=name)


@case("T08")
def signed_record_with_other_bytes_of_one_size(f: Forge) -> Attempt:
    name = rekeyed(f).digest
    manifest = msgspec.structs.replace(f.manifest, key=name, preimage=rekeyed(f))
    data = f.store.read(f.manifest.sha256)
    other = f.store.put_bytes("engine", data[:-1] + bytes([data[-1] ^ 1]))
    return replace(signed_record(f, manifest, name, other), engine=name)


def signed_record(f: Forge, manifest: Manifest, name: str, *blobs: Blob) -> Attempt:
    """Return a try with a record that nobody would write, and with all signatures of it."""
    stored = make_record("engine", name, manifest.preimage, manifest, blobs or f.record.blobs)
    f.record, f.manifest = f.store.put(stored), manifest
    f.candidate = msgspec.structs.replace(
        f.candidate,
        key=name,
        preimage=manifest.preimage,
        manifest_sha256=hashlib.sha256(f.record.value).hexdigest(),
    )
    return f.attempt()


@case("T08")
def record_and_manifest_under_a_key_that_is_not_their_preimages(f: Forge) -> Attempt:
    f.use(f.record_of(f.manifest, "f" * 64))
    return f.attempt()


@case("T08")
def unsigned_record_under_a_key_that_is_not_its_preimages(f: Forge) -> Attempt:
    f.use(f.record_of(f.manifest, "f" * 64))
    return replace(f.attempt(), envelopes=[], policy=LOCAL, made=[f.record])


@case("T08")
def record_with_the_bytes_of_another_engine(f: Forge) -> Attempt:
    name = rekeyed(f)
    other = f.store.put_bytes("engine", b"\x08 other bytes")
    manifest = msgspec.structs.replace(f.manifest, key=name.digest, preimage=name)
    f.store.put(make_record("engine", name.digest, name, manifest, (other,)))
    return replace(f.attempt(), engine=name.digest)


@case("T08")
def manifest_changed_after_signing(f: Forge) -> Attempt:
    good = f.attempt()
    path = next((f.store.top / "ac" / "engine").rglob(f.record.key))
    path.unlink()
    f.put(msgspec.structs.replace(f.manifest, outputs=f.manifest.inputs))
    return good


def rekeyed(f: Forge) -> Any:  # noqa: ANN401  an EngineKey
    preimage = f.manifest.preimage
    return msgspec.structs.replace(preimage, network_sha256="1" * 64)


# T09, provenance


def of_provenance(change: Callable[[Doc], object]) -> Make:
    return lambda f: f.changed(lambda docs: change(docs["provenance"]["predicate"]))


def of_parameters(change: Callable[[Doc], object]) -> Make:
    return of_provenance(lambda p: change(p["buildDefinition"]["externalParameters"]))


for _name, _make in {
    "built_on_no_such_day": of_provenance(
        lambda p: p["runDetails"]["metadata"].update(finishedOn="2026-02-30T00:00:00Z")
    ),
    "another_build_type": of_provenance(
        lambda p: p["buildDefinition"].update(buildType="urn:other")
    ),
    "unknown_external_parameter": of_parameters(lambda p: p.update(debug=True)),
    "missing_external_parameter": of_parameters(lambda p: p.pop("target")),
    "another_preimage": of_parameters(lambda p: p["preimage"].update(network_sha256="2" * 64)),
    "preimage_with_one_field_more": of_parameters(lambda p: p["preimage"].update(extra=1)),
    "provenance_of_another_model": of_parameters(lambda p: p.update(model="other")),
    "provenance_of_another_key": of_parameters(lambda p: p.update(key="3" * 64)),
    "provenance_for_another_target": of_parameters(lambda p: p.update(target="onnxruntime:b")),
    "release_names_other_provenance": of_release(provenance="4" * 64),
}.items():
    add("T09", _name, _make)


@case("T09")
def builder_that_is_not_allowed(f: Forge) -> Attempt:
    policy = POLICY.replace("promoters = 1", 'promoters = 1\nbuilder_ids = ["urn:test:other"]')
    return replace(f.attempt(), policy=policy)


@case("T09")
def provenance_taken_away(f: Forge) -> Attempt:
    good = f.attempt()
    return replace(good, envelopes=good.envelopes[1:])


@case("T09")
def gates_in_the_place_of_provenance(f: Forge) -> Attempt:
    digest = hashlib.sha256(f.payloads()["gates"]).hexdigest()
    return of_release(provenance=digest)(f)


# T10, gates


def of_gates(**changes: object) -> Make:
    return lambda f: f.changed(lambda docs: docs["gates"]["predicate"].update(changes))


def gate(*, passed: bool = True, skipped: bool = False) -> list[Doc]:
    return [{"name": "max_drop", "passed": passed, "skipped": skipped}]


def with_gate_policy(line: str, make: Make) -> Make:
    return lambda f: replace(make(f), policy=with_line(line))


for _name, _make in {
    "verification_failed": of_gates(passed=False),
    "one_gate_failed_though_all_is_called_passed": of_gates(gates=gate(passed=False)),
    "gate_of_the_policy_was_skipped": with_gate_policy(
        'gates = ["max_drop"]', of_gates(gates=gate(skipped=True))
    ),
    "gate_of_the_policy_is_missing": with_gate_policy(
        'gates = ["max_drop"]', of_gates(gates=[])
    ),
    "measured_by_a_twin_only": with_gate_policy("twins = false", of_gates(measuredOn="twin")),
    "release_names_other_gates": of_release(gates="5" * 64),
}.items():
    add("T10", _name, _make)


@case("T10")
def gates_taken_away(f: Forge) -> Attempt:
    good = f.attempt()
    return replace(good, envelopes=[good.envelopes[0], good.envelopes[2]])


# T11, code inside


def built_with(*settings: tuple[str, int | bool | str]) -> Make:
    def make(f: Forge) -> Attempt:
        f.with_settings(*settings)
        return f.attempt()

    return make


add("T11", "embedded_plugin", built_with(("plugins_to_serialize", "lib.so")))
add("T11", "plugin_that_is_not_listed", built_with(("plugins", "6" * 64)))
add("T11", "lean_runtime_inside", built_with(("version_compatible", True)))


@case("T11")
def second_plugin_that_is_not_listed(f: Forge) -> Attempt:
    f.with_settings(("plugins", "6" * 64 + "," + "7" * 64))
    return replace(f.attempt(), policy=POLICY + f'[plugins]\nallowed = ["{"6" * 64}"]\n')


# T12, versions and machines


@case("T12")
def version_that_the_policy_refuses(f: Forge) -> Attempt:
    policy = POLICY.replace("promoters = 1", 'promoters = 1\nbackends = {onnxruntime = "<1"}')
    return replace(f.attempt(), policy=policy)


def another(field: str, **changes: str) -> Make:
    def make(f: Forge) -> Attempt:
        preimage = f.manifest.preimage
        part = msgspec.structs.replace(getattr(preimage, field), **changes)
        preimage = msgspec.structs.replace(preimage, **{field: part})
        f.put(msgspec.structs.replace(f.manifest, preimage=preimage))
        return f.attempt()

    return make


add(
    "T12",
    "release_candidate_of_a_library",
    with_gate_policy(
        'backends = {onnxruntime = ">=1"}', another("fingerprint", version="9.0rc1")
    ),
)
add(
    "T12",
    "version_of_five_thousand_digits",
    with_gate_policy(
        'backends = {onnxruntime = ">=1"}', another("fingerprint", version="9" * 5000)
    ),
)
add("T12", "old_tensorrt", another("fingerprint", backend="tensorrt", version="10.13.0.35"))
add("T12", "another_processor", another("target", arch="x86_64-other"))
add("T12", "another_version_of_the_library", another("fingerprint", version="1.0.0"))


# T13 to T15, the bytes


@case("T13")
def size_that_is_not_the_manifests(f: Forge) -> Attempt:
    key = rekeyed(f)
    manifest = msgspec.structs.replace(f.manifest, preimage=key, bytes=f.manifest.bytes + 1)
    f.put(manifest)
    return f.attempt()


def with_bytes(change: Callable[[bytes], bytes]) -> Make:
    def make(f: Forge) -> Attempt:
        data = change(f.store.read(f.manifest.sha256))
        f.put(msgspec.structs.replace(f.manifest, preimage=rekeyed(f)), data)
        return f.attempt()

    return make


def program(machine: int) -> bytes:
    """Return the start of an ELF library for a processor (elf.h)."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + machine.to_bytes(2, "little")


add(
    "T14",
    "program_for_this_processor_inside",
    with_bytes(lambda d: d + program(62)),
)
add("T14", "program_for_arm_inside", with_bytes(lambda d: d + program(183)))
add("T14", "bytes_that_are_no_engine", with_bytes(lambda _: b"#!/bin/sh\n"))
add("T15", "bytes_that_only_begin_as_an_engine", with_bytes(lambda d: d[:2] + b"\xff" * 64))


@case("T15")
def outputs_that_the_manifest_does_not_have(f: Forge) -> Attempt:
    outputs = tuple(msgspec.structs.replace(each, name="z") for each in f.manifest.outputs)
    f.put(msgspec.structs.replace(f.manifest, preimage=rekeyed(f), outputs=outputs))
    return f.attempt()


@case("T15")
def outputs_that_the_manifest_does_not_have_without_a_first_load(f: Forge) -> Attempt:
    outputs = tuple(msgspec.structs.replace(each, name="z") for each in f.manifest.outputs)
    f.put(msgspec.structs.replace(f.manifest, preimage=rekeyed(f), outputs=outputs))
    return replace(f.attempt(), policy="canary = false\n" + POLICY)


# T16, revoked


def revoked(what: str, digest: Callable[[Forge], str]) -> Make:
    return lambda f: replace(
        f.attempt(), policy=f'{POLICY}[[revoked]]\n{what} = "{digest(f)}"\nreason = "stolen"\n'
    )


add(
    "T16",
    "revoked_builder",
    lambda f: replace(
        revoked("key", lambda _: BUILDER.public.keyid)(f),
        envelopes=f.attempt(None, release=(BUILDER,)).envelopes,
    ),
)
add("T16", "revoked_promoter", revoked("key", lambda _: PROMOTER.public.keyid))
add("T16", "revoked_engine", revoked("engine", lambda f: f.candidate.sha256))


# T17, unsigned


@case("T17")
def no_statement_at_all(f: Forge) -> Attempt:
    return replace(f.attempt(), envelopes=[])


@case("T17")
def built_here_but_the_policy_wants_signatures(f: Forge) -> Attempt:
    return replace(f.attempt(), envelopes=[], made=[f.record])


@case("T17")
def unsigned_from_elsewhere_under_a_local_policy(f: Forge) -> Attempt:
    return replace(f.attempt(), envelopes=[], policy=LOCAL)


@case("T17")
def another_manifest_of_bytes_that_were_built_here(f: Forge) -> Attempt:
    made = [f.record]
    f.put(msgspec.structs.replace(f.manifest, outputs=f.manifest.inputs, preimage=rekeyed(f)))
    return replace(f.attempt(), envelopes=[], policy=LOCAL, made=made)


def unsigned(make: Make, policy: str = LOCAL) -> Make:
    """Return tries with an engine that was built here and signed by nobody."""

    def tried(f: Forge) -> Attempt:
        return replace(make(f), envelopes=[], policy=policy, made=[f.record])

    return tried


add(
    "T08",
    "unsigned_engine_of_another_model",
    unsigned(lambda f: replace(f.attempt(), model="other")),
)
add("T11", "plugin_in_an_unsigned_engine", unsigned(built_with(("plugins", "6" * 64))))
add(
    "T11", "lean_runtime_in_an_unsigned_one", unsigned(built_with(("version_compatible", True)))
)
add(
    "T12",
    "unsigned_old_tensorrt",
    unsigned(another("fingerprint", backend="tensorrt", version="10.13.0.35")),
)
add(
    "T12",
    "unsigned_engine_of_a_version_that_the_policy_refuses",
    unsigned(
        lambda f: f.attempt(),
        LOCAL.replace("promoters = 1", 'promoters = 1\nbackends = {onnxruntime = "<1"}'),
    ),
)


# T18, the memory


def remembering(seen: bytes) -> Make:
    return lambda f: replace(f.attempt(), seen=seen)


MEMORIES = {
    "memory_that_is_no_json": b"{",
    "memory_with_a_duplicate": b'{"releases":{},"releases":{},"schema":1}',
    "memory_of_the_future": b'{"releases":{},"schema":3}',
    "memory_without_keys": b'{"releases":{"m/t/int8":{"seq":1}},"schema":2}',
    "memory_with_a_number_of_the_second_schema_in_the_first": (
        b'{"releases":{"m/t":{"keys":[],"seq":1}},"schema":1}'
    ),
    "memory_of_release_zero": b'{"releases":{"m/t/int8":{"keys":[],"seq":0}},"schema":2}',
    "empty_memory": b"",
}
for _name, _seen in MEMORIES.items():
    add("T18", _name, remembering(_seen))


@case("T18")
def memory_that_others_may_write(f: Forge) -> Attempt:
    return replace(f.attempt(), seen=encode({"schema": 1, "releases": {}}), seen_mode=0o666)


def load(attempt: Attempt, f: Forge, folder: Path) -> str:
    """Try to load; return the code that refused it, or ``loaded``."""
    for envelope in attempt.envelopes:
        subject = f.candidate.sha256
        if len(envelope) <= 1 << 20:
            put_statement(f.store, subject, envelope)
        else:  # as somebody who writes to the folder would
            name = hashlib.sha256(envelope).hexdigest()
            (f.store.top / "att" / subject / name).write_bytes(envelope)
    policy, lock, state = folder / "policy.toml", folder / "engines.lock", folder / "state"
    state.mkdir()
    os.environ["TRTBUILD_STATE"] = str(state)
    for record in attempt.made:
        mark_made(record)
    policy.write_text(attempt.policy)
    policy.chmod(attempt.policy_mode)
    if attempt.lock is not None:
        lock.write_text(attempt.lock)
    if attempt.seen is not None:
        (state / "releases.json").write_bytes(attempt.seen)
        (state / "releases.json").chmod(attempt.seen_mode)
    try:
        trtbuild.load(
            attempt.engine,
            f.store.root,
            policy=policy,
            lock=lock if attempt.lock is not None else "",
            model=attempt.model,
        )
    except TrtbuildError as error:
        return str(getattr(error, "code", "")) or f"{type(error).__name__}: {error}"
    return "loaded"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one try: the code, and whether it was remembered as loaded."""

    code: str
    memory_changed: bool


def ordered() -> list[str]:
    """Return the names of the cases by the check that refuses them."""
    return [name for name, _ in sorted(CASES.items(), key=lambda each: each[1][0])]


def attempt(name: str, store: Path, own: Path) -> Outcome:
    """Try one case, or the ``good`` engine, with a copy of ``store`` in a new folder."""
    own.mkdir(parents=True)
    shutil.copytree(store, own / "store")
    f = forge(own / "store")
    shutil.rmtree(f.store.top / "att", ignore_errors=True)
    tried = CASES[name][1](f) if name in CASES else f.attempt()
    code = load(tried, f, own)
    memory = own / "state" / "releases.json"
    after = memory.read_bytes() if memory.exists() else None
    return Outcome(code=code, memory_changed=after != tried.seen)


def main(store: str, folder: str) -> None:
    """Try all cases, the good one last, and print what each did."""
    events: list[str] = []
    really = ort.InferenceSession.__init__

    def opened(session: ort.InferenceSession, *given: object, **named: object) -> None:
        events.append("session")
        really(session, *given, **named)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "subprocess.Popen":
            events.append("child")
        elif event == "import" and arguments[0] in ("tensorrt", "tensorrt_rtx"):
            events.append("session")

    ort.InferenceSession.__init__ = opened
    sys.addaudithook(watch)
    found: dict[str, object] = {}
    for name in [*ordered(), "good"]:
        events.clear()
        outcome = attempt(name, Path(store), Path(folder) / name)
        found[name] = {
            "code": outcome.code,
            "events": list(dict.fromkeys(events)),
            "memory_changed": outcome.memory_changed,
        }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
