"""A refusal tells what is really in the way, and what its remedy says works."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

import trtbuild
from tests.trust.commands import demand_promoters, manifest_of, recipe, run, signed, works
from tests.trust.forge import BUILDER, MODEL, NOW, POLICY, SECOND_PROMOTER, SEQ, forge
from trtbuild.errors import TrustError
from trtbuild.pipeline.promotion import Promotion, promote
from trtbuild.pipeline.signing import Signer
from trtbuild.store import Store
from trtbuild.store.statements import put_statement, statements
from trtbuild.trust.candidate import Situation
from trtbuild.trust.checks import decide
from trtbuild.trust.policy import read_policy
from trtbuild.trust.statements import second

if TYPE_CHECKING:
    from pathlib import Path

    from tests.trust.forge import Forge


def release(subject: Forge, seq: int, *, promoted: bool, days: int = 90) -> list[bytes]:
    def change(docs: dict[str, dict[str, dict[str, object]]]) -> None:
        expires = second(NOW + timedelta(days=days))
        docs["release"]["predicate"].update(seq=seq, expires=expires)

    signers = {} if promoted else {"release": (BUILDER,)}
    return subject.attempt(subject.payloads(change), **signers).envelopes


@pytest.mark.parametrize(
    ("days", "later", "code"), [(-1, 0, "T07"), (90, 5, "T06"), (90, 0, "")]
)
def test_a_newer_release_that_waits_for_promotion_hides_no_reason(
    built: Path, days: int, later: int, code: str
) -> None:
    subject = forge(built)
    envelopes = [
        *release(subject, SEQ, promoted=True, days=days),
        *release(subject, SEQ + 9, promoted=False),
    ]
    place = f"{MODEL}/{subject.candidate.preimage.target}/fp32"
    policy = read_policy(POLICY.encode(), "policy")
    situation = Situation(policy=policy, now=NOW, seen={place: SEQ + later})
    if not code:
        assert decide(subject.candidate, envelopes, situation).seq == SEQ
        return
    with pytest.raises(TrustError) as caught:
        decide(subject.candidate, envelopes, situation)
    assert caught.value.code == code


def test_only_a_promoter_of_the_model_promotes(place: Path) -> None:
    engine = signed(place)
    run("keys", "generate", "stranger")
    run("keys", "generate", "narrow")
    run("keys", "trust", "narrow", "--role", "promoter", "--model", "other-*")
    demand_promoters(place)
    before = statements(Store.open(""), engine)
    for key, known in (
        ("nightly", r"it is builder of \*"),
        ("stranger", "it is not in it"),
        ("narrow", r"it is promoter of other-\*"),
    ):
        message = run("promote", engine, "--key", key, code=6)
        assert "has no role promoter for 'classifier' in the policy" in message
        assert known.replace("\\", "") in message
    assert statements(Store.open(""), engine) == before
    run("promote", engine, "--key", "release")
    run("keys", "revoke", "release")
    assert "T16" in run("promote", engine, "--key", "release", code=6)


def test_a_builder_signs_a_later_release_where_no_promoter_is_needed(place: Path) -> None:
    run("promote", signed(place), "--key", "nightly")


def test_an_unsigned_engine_is_signed_as_the_refusal_says(place: Path) -> None:
    run("keys", "generate", "nightly")
    run("keys", "trust", "nightly")
    engine = manifest_of(place / "store").sha256
    with pytest.raises(TrustError, match="trtbuild engine RECIPE again with a key") as caught:
        trtbuild.load(engine)
    assert caught.value.code == "T17"
    run("keys", "generate", "second", "--use")
    run("keys", "trust", "second")
    run("engine", recipe(place), "-q")
    assert works(trtbuild.load(engine))
    for path in (place / "store" / "v1" / "att" / engine).iterdir():
        path.chmod(0o600)
        path.write_bytes(b"junk")
    with pytest.raises(TrustError, match="3 files of statements beside it are damaged"):
        trtbuild.load(engine)


def test_cosigning_signs_the_release_that_was_looked_at(place: Path) -> None:
    subject = forge(place / "store")

    def worthless(docs: dict[str, dict[str, dict[str, object]]]) -> None:
        docs["release"]["predicate"].update(seq=SEQ + 1, gates="5" * 64)

    newer = subject.changed(worthless).envelopes[2]
    for envelope in (*subject.attempt().envelopes, newer):
        put_statement(subject.store, subject.candidate.sha256, envelope)
    by = Signer(name="second", key=SECOND_PROMOTER)
    policy = read_policy(POLICY.encode(), "policy")
    promotion = Promotion(engine=subject.candidate.key, policy=policy, by=by, cosign=True)
    assert promote(subject.store, promotion).seq == SEQ
    late = release(subject, SEQ + 2, promoted=True, days=-1)
    for envelope in late:
        put_statement(subject.store, subject.candidate.sha256, envelope)
    assert promote(subject.store, promotion).seq == SEQ, "what has expired is no use to anybody"


def test_a_new_policy_says_what_it_refuses_from_now_on(place: Path) -> None:
    engine = manifest_of(place / "store").sha256
    run("keys", "generate", "nightly")
    assert works(trtbuild.load(engine))
    told = run("keys", "trust", "nightly")
    assert "is new, and refuses unsigned engines" in told
    with pytest.raises(TrustError, match="T17"):
        trtbuild.load(engine)
    policy = place / "config/trtbuild/policy.toml"
    policy.write_text(policy.read_text().replace('unsigned = "refuse"', 'unsigned = "local"'))
    assert 'unsigned = "local" in it' in told
    assert works(trtbuild.load(engine))
    assert "is new" not in run("keys", "revoke", "nightly")
    told = run("keys", "revoke", engine, "--policy", "polciy.toml", code=2)
    assert "policy polciy.toml: no such file" in told
    assert not (place / "polciy.toml").exists()


def test_a_revoked_key_of_ones_own_is_told(place: Path) -> None:
    run("keys", "generate", "nightly", "--use")
    run("keys", "generate", "second")
    run("keys", "revoke", "nightly", "--reason", "laptop lost")
    shown = run("keys", "list")
    assert "REVOKED: nothing is signed with it" in shown
    own = {each["name"]: each for each in json.loads(run("keys", "list", "--json"))["own"]}
    assert (own["nightly"]["revoked"], own["second"]["revoked"]) == (True, False)
    told = run("doctor")
    assert "is revoked by the policy (laptop lost)" in told
    (place / "config/trtbuild/policy.toml").write_text("broken")
    assert "signs what engine and nightly build" in run("doctor")


def test_a_lockfile_that_is_not_there_is_not_to_be_removed(place: Path) -> None:
    missing = run("lock", "--check", code=6)
    assert "lockfile engines.lock: No such file" in missing
    assert "make it: trtbuild lock" in missing
    assert "remove" not in missing
    (place / "engines.lock").write_text("broken")
    assert "remove it and make it anew" in run("lock", "--check", code=6)
