"""What a decision rests on and says, where no attack tells two answers apart."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.trust.attacks.engines import program
from tests.trust.forge import (
    BUILDER,
    MODEL,
    NARROW,
    NOW,
    POLICY,
    PROMOTER,
    SEQ,
    STRANGER,
    forge,
    key,
)
from trtbuild.errors import TrustError
from trtbuild.runtime import trust_files
from trtbuild.trust import dsse
from trtbuild.trust.candidate import Pin, Situation
from trtbuild.trust.checks import decide
from trtbuild.trust.content import check_content, host_programs
from trtbuild.trust.evidence import MAX_STATEMENTS
from trtbuild.trust.keys import KeyFormatError, private_key, public_key
from trtbuild.trust.policy import read_policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.trust.forge import Doc, Forge
    from trtbuild.trust.candidate import Candidate


@pytest.fixture
def subject(built: Path) -> Forge:
    return forge(built)


def ruled(*lines: str, more: str = "") -> str:
    """Return the policy with other lines in its table of models, and more at its end."""
    return POLICY.replace("promoters = 1", "\n".join(lines)) + more


def decided(
    candidate: Candidate, envelopes: list[bytes], policy: str = POLICY, pin: Pin | None = None
) -> str:
    """Return what refuses the engine, empty where nothing does."""
    rules = read_policy(policy.encode(), "policy")
    situation = Situation(policy=rules, now=NOW, seen={}, pin=pin)
    try:
        decide(candidate, envelopes, situation)
    except TrustError as error:
        return str(error)
    return ""


def gates(**changes: object) -> Callable[[Doc], object]:
    return lambda docs: docs["gates"]["predicate"].update(changes)


def test_of_statements_that_do_not_count_the_one_that_came_furthest_is_told(
    subject: Forge,
) -> None:
    envelopes = [b"junk", dsse.seal(b"{", (PROMOTER,)), dsse.seal(b"{}", (STRANGER,))]
    assert decided(subject.candidate, envelopes).startswith("T05")
    assert decided(subject.candidate, envelopes[::-1]).startswith("T05")


def test_a_refusal_of_an_unsigned_engine_says_what_the_policy_would_take(
    subject: Forge,
) -> None:
    foreign = msgspec.structs.replace(subject.candidate, built_here=False)
    assert "carries no signature" in decided(foreign, [])
    local = 'unsigned = "local"\n' + POLICY
    assert "was not built by this user on this machine" in decided(foreign, [], local)
    assert decided(msgspec.structs.replace(foreign, built_here=True), [], local) == ""


def test_a_revocation_is_told_with_its_reason_or_without(subject: Forge) -> None:
    entry = f'[[revoked]]\nengine = "{subject.candidate.sha256}"\n'
    envelopes = subject.attempt().envelopes
    assert " was revoked: expected" in decided(subject.candidate, envelopes, POLICY + entry)
    entry += 'reason = "stolen"\n'
    assert " was revoked (stolen): " in decided(subject.candidate, envelopes, POLICY + entry)
    entry = f'[[revoked]]\nkey = "{PROMOTER.public.keyid}"\n'
    assert ") was revoked: expected" in decided(subject.candidate, envelopes, POLICY + entry)


def test_a_pin_is_of_one_engine_for_one_target(subject: Forge) -> None:
    good = Pin(
        model=MODEL,
        target=str(subject.candidate.preimage.target),
        engine=subject.candidate.sha256,
        seq=SEQ,
    )
    envelopes = subject.attempt().envelopes
    assert decided(subject.candidate, envelopes, pin=good) == ""
    for change in ({"engine": "d" * 64}, {"target": "onnxruntime:other"}):
        pin = msgspec.structs.replace(good, **change)
        assert decided(subject.candidate, envelopes, pin=pin).startswith("T02")


def test_too_few_signatures_are_told_with_who_may_add_them(subject: Forge) -> None:
    by_builder = subject.attempt(None, release=(BUILDER,)).envelopes
    promoted = decided(subject.candidate, by_builder)
    assert f"of the role promoter for {MODEL!r} (none); 'nightly' signed it, but " in promoted
    assert "is trusted as builder of * only" in promoted
    assert "trtbuild promote ENGINE" in promoted
    two = decided(subject.candidate, subject.attempt().envelopes, ruled("promoters = 2"))
    assert f"for {MODEL!r} (release): expected 2" in two
    built = decided(subject.candidate, subject.attempt(None, gates=(NARROW,)).envelopes)
    assert "'narrow' signed it, but is trusted as builder of other-* only" in built
    assert "or add the model to those of the key" in built


def test_gates_that_failed_are_named(subject: Forge) -> None:
    failed = [{"name": "max_drop", "passed": False, "skipped": False}]
    told = decided(subject.candidate, subject.changed(gates(gates=failed)).envelopes)
    assert "it failed max_drop" in told
    told = decided(subject.candidate, subject.changed(gates(passed=False)).envelopes)
    assert "it failed its verification" in told


@pytest.mark.parametrize(
    ("where", "line", "code"),
    [
        ("device", "twins = false", ""),
        ("device", "twins = true", ""),
        ("twin", "twins = true", ""),
        ("twin", "twins = false", "T10"),
    ],
)
def test_a_twin_counts_where_the_policy_says_so(
    subject: Forge, where: str, line: str, code: str
) -> None:
    envelopes = subject.changed(gates(measuredOn=where)).envelopes
    found = decided(subject.candidate, envelopes, ruled("promoters = 1", line))
    assert found.partition(":")[0] == code


def test_an_envelope_may_be_as_large_as_the_limit_and_no_larger(subject: Forge) -> None:
    payloads = subject.payloads(
        lambda docs: docs["provenance"]["predicate"]["buildDefinition"].update(
            resolvedDependencies=[{"name": "x" * 4000, "digest": {"sha256": "a" * 64}}] * 180
        )
    )
    envelopes = subject.attempt(payloads).envelopes
    room = dsse.MAX_ENVELOPE_BYTES - len(envelopes[0])
    assert room > 0
    assert decided(subject.candidate, [envelopes[0] + b" " * room, *envelopes[1:]]) == ""
    larger = [envelopes[0] + b" " * (room + 1), *envelopes[1:]]
    assert decided(subject.candidate, larger).startswith("T09")


def test_sixteen_signatures_are_read_and_seventeen_are_not() -> None:
    keys = [key(seed) for seed in range(20, 37)]
    assert len(dsse.decode_envelope(dsse.seal(b"{}", keys[:16])).signatures) == 16
    with pytest.raises(TrustError, match="T03"):
        dsse.decode_envelope(dsse.seal(b"{}", keys))


def test_as_many_statements_are_read_as_the_limit_says(subject: Forge) -> None:
    good = subject.attempt().envelopes
    junk = [b"%d" % n for n in range(MAX_STATEMENTS - len(good))]
    assert decided(subject.candidate, [*junk, *good]) == ""
    assert decided(subject.candidate, [*junk, *good, b"x"]).startswith("T03")


@pytest.mark.parametrize("text", ["", "nonsense", "AAAA", "-----BEGIN PUBLIC KEY-----"])
def test_what_is_no_key_is_told(text: str) -> None:
    with pytest.raises(KeyFormatError, match="Ed25519"):
        public_key(text)
    with pytest.raises(KeyFormatError, match="no private key"):
        private_key(text.encode(), b"")


ELF = program(62)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (ELF, ("x86-64",)),
        (b"x" + ELF + program(183), ("x86-64", "AArch64")),
        (ELF[:19], ()),
        (ELF[:5], ()),
        (b"\x7fELF", ()),
        (program(190), ()),
        (ELF[:4] + b"\x01" + ELF[5:], ("x86-64",)),
        (ELF[:4] + b"\x03" + ELF[5:], ()),
        (ELF[:5] + b"\x03" + ELF[6:], ()),
        (ELF[:6] + b"\x02" + ELF[7:], ()),
        (ELF[:5] + b"\x02" + ELF[6:18] + b"\x00\x3e", ("x86-64",)),
        (b"", ()),
    ],
)
def test_programs_are_found_by_their_headers(data: bytes, found: tuple[str, ...]) -> None:
    assert host_programs(data) == found


def test_content_is_refused_for_what_it_hides_or_how_it_begins() -> None:
    check_content(b"fine", "engine", "")
    check_content(ELF, "engine", "", host_code=True)
    for data, problem, host_code in ((ELF, "", False), (b"fine", "odd", True)):
        with pytest.raises(TrustError, match="T14"):
            check_content(data, "engine", problem, host_code=host_code)


@pytest.mark.parametrize(
    ("name", "read", "code"),
    [
        ("policy.toml", trust_files.load_policy, "T01"),
        ("releases.json", lambda _: trust_files.load_memory(), "T18"),
    ],
)
def test_what_trust_rests_on_is_a_file_of_ours(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    read: Callable[[str], object],
    code: str,
) -> None:
    monkeypatch.setenv("TRTBUILD_STATE", str(tmp_path))
    path = tmp_path / name
    os.mkfifo(path, 0o600)
    with pytest.raises(TrustError, match="not a regular file") as caught:
        read(str(path))
    assert caught.value.code == code
    path.unlink()
    path.write_bytes(b"schema = 1\n" if code == "T01" else b'{"releases":{},"schema":2}')
    path.chmod(0o600)
    read(str(path))
    if os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    else:
        os.chown(path, 65534, 65534)
    with pytest.raises(TrustError, match="belongs to user") as caught:
        read(str(path))
    assert caught.value.code == code
