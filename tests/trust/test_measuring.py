"""What is run for a measurement passes the checks of a load, unless it was built here."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.trust.attacks.cases import rekeyed
from tests.trust.attacks.engines import program
from tests.trust.forge import POLICY, forge
from trtbuild.backends.session import SessionOptions
from trtbuild.errors import TrustError
from trtbuild.pipeline.layer_times import timed_layers
from trtbuild.runtime import admission, canary
from trtbuild.runtime.admission import Terms
from trtbuild.runtime.made_here import mark_made
from trtbuild.store.statements import put_statement

if TYPE_CHECKING:
    from pathlib import Path

    from tests.trust.forge import Forge


@pytest.fixture
def subject(place: Path) -> Forge:
    """An engine that came from elsewhere, and a policy that trusts who will have signed it."""
    shutil.rmtree(place / "state" / "made")
    write_policy(place, POLICY)
    return forge(place / "store")


def write_policy(place: Path, text: str) -> None:
    path = place / "config" / "trtbuild" / "policy.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)


def sign(subject: Forge) -> None:
    for envelope in subject.attempt().envelopes:
        put_statement(subject.store, subject.candidate.sha256, envelope)


def quiet(_: str) -> None:
    pass


def measure(subject: Forge) -> str:
    """Return the code that refuses to time the engine, empty where it was timed."""
    try:
        timed_layers(subject.store, subject.manifest, quiet)
    except TrustError as error:
        return error.code
    return ""


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engines that were loaded in a child process."""
    found: list[str] = []
    really = canary._try  # noqa: SLF001  what starts the child

    def watched(trial: canary.Trial, parts: tuple[bytes, ...]) -> str:
        found.append(str(trial.target))
        return really(trial, parts)

    monkeypatch.setattr(canary, "_try", watched)
    return found


def test_an_engine_from_elsewhere_is_tried_in_a_child_first(
    subject: Forge, children: list[str]
) -> None:
    assert measure(subject) == "T17"
    assert children == []
    sign(subject)
    assert measure(subject) == ""
    assert len(children) == 1
    assert measure(subject) == ""
    assert len(children) == 1, "it was loaded on this machine before"


def test_what_hides_a_program_is_not_run_for_a_measurement(
    subject: Forge, children: list[str]
) -> None:
    hidden = program(62)
    data = subject.store.read(subject.manifest.sha256)
    data += b"\xa2\x06" + bytes([len(hidden)]) + hidden  # a field that readers skip
    subject.put(msgspec.structs.replace(subject.manifest, preimage=rekeyed(subject)), data)
    sign(subject)
    assert measure(subject) == "T14"
    assert children == []


def test_a_revoked_engine_is_not_run_though_it_was_built_here(
    subject: Forge, children: list[str], place: Path
) -> None:
    mark_made(subject.record)
    assert measure(subject) == ""
    assert children == []
    write_policy(place, f'{POLICY}[[revoked]]\nengine = "{subject.manifest.sha256}"\n')
    assert measure(subject) == "T16"


def test_an_own_engine_may_bring_the_runtime_that_it_was_asked_to(subject: Forge) -> None:
    data = subject.store.read(subject.manifest.sha256) + program(62)
    preimage = msgspec.structs.replace(
        rekeyed(subject), settings=(("version_compatible", True),)
    )
    subject.put(msgspec.structs.replace(subject.manifest, preimage=preimage), data)
    sign(subject)
    with pytest.raises(TrustError, match="T11"):
        admission.admit_measuring(subject.store, subject.manifest)
    mark_made(subject.record)
    found = admission.admit_measuring(subject.store, subject.manifest)
    assert found.data == data
    assert found.options.allow_host_code


def test_without_a_policy_an_own_engine_is_loaded_with_what_it_was_built_to_carry(
    subject: Forge, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "preflight", lambda *_: None)  # the option is for GPUs
    monkeypatch.setattr(canary, "require", lambda *_: None)
    (place / "config" / "trtbuild" / "policy.toml").unlink()
    data = subject.store.read(subject.manifest.sha256)
    data += b"\xa2\x06" + bytes([len(program(62))]) + program(62)  # a field that readers skip
    preimage = msgspec.structs.replace(
        rekeyed(subject), settings=(("version_compatible", True),)
    )
    subject.put(msgspec.structs.replace(subject.manifest, preimage=preimage), data)
    asked = SessionOptions(allow_host_code=True)
    with pytest.raises(TrustError, match="T17"):
        admission.admit(subject.store, subject.manifest.key, Terms(), asked)
    mark_made(subject.record)
    with pytest.raises(TrustError, match="T14"):
        admission.admit(subject.store, subject.manifest.key, Terms())
    found = admission.admit(subject.store, subject.manifest.key, Terms(), asked)
    assert found.data == data
    write_policy(place, 'unsigned = "local"\n' + POLICY)
    with pytest.raises(TrustError, match="T11"):
        admission.admit(subject.store, subject.manifest.key, Terms(), asked)
