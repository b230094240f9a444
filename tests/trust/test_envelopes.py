"""Envelopes and strict JSON: round trips, every flipped byte, and an independent verifier."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.forge import (
    BUILDER,
    NOW,
    POLICY,
    PROMOTER,
    SECOND_PROMOTER,
    SEQ,
    STRANGER,
    forge,
)
from trtbuild.canonical import encode
from trtbuild.errors import TrustError
from trtbuild.trust import dsse, strict_json, versions
from trtbuild.trust.bundle import bundles
from trtbuild.trust.candidate import Situation
from trtbuild.trust.checks import decide
from trtbuild.trust.policy import NEW_POLICY, json_schema, read_policy

if TYPE_CHECKING:
    from pathlib import Path

    from tests.trust.forge import (
        Forge,
    )


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def subject(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Forge:
    root = tmp_path_factory.mktemp("envelopes") / "store"
    shutil.copytree(built, root)
    return forge(root)


def situation(policy: str = POLICY, **changes: Any) -> Situation:  # noqa: ANN401  any field
    situation = Situation(policy=read_policy(policy.encode(), "policy"), now=NOW, seen={})
    return msgspec.structs.replace(situation, **changes)


def test_any_flipped_bit_of_any_envelope_refuses_the_engine(subject: Forge) -> None:
    good = subject.attempt().envelopes
    assert decide(subject.candidate, good, situation()).signed
    for index, envelope in enumerate(good):
        for place in range(len(envelope)):
            flipped = bytearray(envelope)
            flipped[place] ^= 1 << place % 8
            forged = [*good[:index], bytes(flipped), *good[index + 1 :]]
            with pytest.raises(TrustError) as caught:
                decide(subject.candidate, forged, situation())
            assert caught.value.code, place


def test_junk_beside_good_statements_changes_nothing_and_is_told(subject: Forge) -> None:
    junk = [b"junk", dsse.seal(b"{}", (STRANGER,)), dsse.seal(b"[]", (BUILDER,))]
    admission = decide(subject.candidate, [*junk, *subject.attempt().envelopes], situation())
    assert admission.signed
    assert sorted(text[:3] for text in admission.ignored) == ["T03", "T04", "T05"]


def test_two_promoters_count_whether_in_one_envelope_or_in_two(subject: Forge) -> None:
    policy = situation(POLICY.replace("promoters = 1", "promoters = 2"))
    together = subject.attempt(None, release=(PROMOTER, SECOND_PROMOTER)).envelopes
    assert decide(subject.candidate, together, policy).promoters == ("release", "second")
    alone = subject.attempt().envelopes
    other = subject.attempt(None, release=(SECOND_PROMOTER,)).envelopes
    assert decide(subject.candidate, [*alone, other[2]], policy).signed


def test_the_newest_release_that_is_good_counts(subject: Forge) -> None:
    def numbered(seq: int, **changes: object) -> list[bytes]:
        payloads = subject.payloads(
            lambda docs: docs["release"]["predicate"].update(seq=seq, **changes)
        )
        return subject.attempt(payloads).envelopes

    expired = numbered(SEQ + 9, expires="2020-01-01T00:00:00Z")
    envelopes = [*numbered(SEQ + 5), *numbered(SEQ + 7), *expired]
    assert decide(subject.candidate, envelopes, situation()).seq == SEQ + 7
    place = f"classifier/{subject.candidate.preimage.target}/fp32"
    assert decide(subject.candidate, envelopes, situation(seen={place: SEQ + 7})).seq == SEQ + 7
    with pytest.raises(TrustError, match="T07"):
        decide(subject.candidate, envelopes, situation(seen={place: SEQ + 8}))


def test_a_key_is_rotated_by_trusting_both_and_then_one(subject: Forge) -> None:
    old, new = (
        subject.attempt().envelopes,
        subject.attempt(None, provenance=(STRANGER,), gates=(STRANGER,)).envelopes,
    )
    both = POLICY + (
        f'[[keys]]\nname = "nightly-2"\nrole = "builder"\n'
        f'public = "{STRANGER.public.text}"\nmodels = ["*"]\n'
    )
    for envelopes in (old, new):
        assert decide(subject.candidate, envelopes, situation(both)).signed
    revoked = f'{both}[[revoked]]\nkey = "{BUILDER.public.keyid}"\n'
    assert decide(subject.candidate, new, situation(revoked)).builders == ("nightly-2",)
    with pytest.raises(TrustError, match="T16"):
        decide(subject.candidate, old, situation(revoked))


@given(st.binary(max_size=200))
def test_an_envelope_survives_a_round_trip(payload: bytes) -> None:
    envelope = dsse.decode_envelope(dsse.seal(payload, (BUILDER, PROMOTER)))
    assert envelope.payload == payload
    keys = (BUILDER.public, PROMOTER.public, STRANGER.public)
    assert dsse.signers(envelope, keys) == {BUILDER.public.keyid, PROMOTER.public.keyid}


@given(
    st.tuples(st.text(max_size=6), st.binary(max_size=6)),
    st.tuples(st.text(max_size=6), st.binary(max_size=6)),
)
def test_no_two_contents_are_signed_as_the_same_bytes(
    first: tuple[str, bytes], second: tuple[str, bytes]
) -> None:
    assert (dsse.pae(*first) == dsse.pae(*second)) == (first == second)


def test_the_encoding_is_that_of_the_specification() -> None:
    """The test vector of secure-systems-lab/dsse, ``protocol.md``."""
    assert (
        dsse.pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@given(PLAIN)
def test_strict_json_reads_what_json_reads(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        found = strict_json.parse(text)
    except strict_json.StrictError:
        with pytest.raises(UnicodeEncodeError):
            text.decode("utf-8", "surrogatepass").encode()
    else:
        assert found == value


@given(st.binary(max_size=60))
def test_random_bytes_are_read_or_refused_never_anything_else(data: bytes) -> None:
    try:
        value = strict_json.parse(data)
    except strict_json.StrictError:
        return
    assert value == json.loads(data)


def test_ranges_hold_what_they_say() -> None:
    for text, version, inside in (
        (">=11.0.0", "11.0.0", True),
        (">=11.0.0", "10.16.1.4", False),
        (">=11,<12", "11.4.0.12", True),
        (">=11,<12", "12.0", False),
        ("==1.2", "1.2.0.0", True),
        ("<=1.2", "1.2.0.1", False),
        (">1.9", "1.10", True),
        (">=1", "2.0rc1", False),
        ("<9", "", False),
    ):
        assert versions.contains(text, version) is inside, (text, version)
    for text in ("", ">=", "11", "~=1.0", ">=1 <2", ">=1.0rc1"):
        with pytest.raises(ValueError, match="no range"):
            versions.check_range(text)


def test_a_new_policy_is_one_and_has_a_schema() -> None:
    assert read_policy(NEW_POLICY.encode(), "new").unsigned == "refuse"
    assert encode(json_schema()).startswith(b'{"$defs":')


def openssl() -> str:
    found = shutil.which("openssl")
    if found is None:
        pytest.skip("openssl is not installed")
    return found


def verified(folder: Path, message: bytes, signature: bytes) -> bool:
    """Tell what openssl says of a signature by ``BUILDER``."""
    (folder / "key.pem").write_bytes(BUILDER.public.pem())
    (folder / "message").write_bytes(message)
    (folder / "signature").write_bytes(signature)
    command = [openssl(), "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin"]
    done = subprocess.run(
        [*command, "-in", "message", "-sigfile", "signature"],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def test_openssl_verifies_our_envelopes_and_bundles(subject: Forge, tmp_path: Path) -> None:
    envelope = subject.attempt().envelopes[0]
    (bundle,) = bundles([envelope]).values()
    for document in (json.loads(envelope), json.loads(bundle)["dsseEnvelope"]):
        payload = base64.b64decode(document["payload"])
        kind = document["payloadType"].encode()
        message = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
        signature = base64.b64decode(document["signatures"][0]["sig"])
        assert verified(tmp_path, message, signature)
        assert not verified(tmp_path, message + b" ", signature)


def test_a_keys_id_is_what_openssl_and_sha256sum_say(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(BUILDER.public.pem())
    der = subprocess.run(
        [openssl(), "pkey", "-pubin", "-in", "key.pem", "-outform", "DER"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    ).stdout
    done = subprocess.run(["sha256sum"], input=der, capture_output=True, check=True)
    assert done.stdout.split()[0].decode() == BUILDER.public.keyid
