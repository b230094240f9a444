"""What was loaded is remembered with who signed it, and forgotten with the last of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.trust.attacks.files import remembered
from tests.trust.corpus import load
from tests.trust.forge import (
    MODEL,
    POLICY,
    PROMOTER,
    SECOND_PROMOTER,
    SEQ,
    STRANGER,
    forge,
)
from trtbuild.backends import ort_session
from trtbuild.errors import MissingBackendError, TrustError
from trtbuild.runtime import trust_files
from trtbuild.trust.memory import Loaded, Memory, read_memory, write_memory

if TYPE_CHECKING:
    from pathlib import Path

    from tests.trust.forge import Forge

A, B = "a" * 64, "b" * 64


@pytest.fixture
def subject(place: Path, monkeypatch: pytest.MonkeyPatch) -> Forge:
    monkeypatch.setenv("TRTBUILD_STATE", "set by each load")
    return forge(place / "store")


def where(subject: Forge) -> str:
    return f"{MODEL}/{subject.candidate.preimage.target}/{subject.candidate.precision}"


def test_what_a_key_wrote_that_was_revoked_later_is_forgotten(
    subject: Forge, tmp_path: Path
) -> None:
    tried = subject.attempt()
    tried.seen = remembered(where(subject), SEQ + 3000, STRANGER)
    (tmp_path / "own").mkdir()
    assert load(tried, subject, tmp_path / "own") == "T06"
    tried.policy = f'{POLICY}[[revoked]]\nkey = "{STRANGER.public.keyid}"\n'
    (tmp_path / "after").mkdir()
    assert load(tried, subject, tmp_path / "after") == "loaded"
    memory = json.loads((tmp_path / "after" / "state" / "releases.json").read_bytes())
    keys = [PROMOTER.public.keyid]
    assert memory == {"schema": 2, "releases": {where(subject): {"seq": SEQ, "keys": keys}}}


def test_the_keys_that_made_a_release_count_are_remembered(
    subject: Forge, tmp_path: Path
) -> None:
    tried = subject.attempt(None, release=(PROMOTER, SECOND_PROMOTER, STRANGER))
    (tmp_path / "own").mkdir()
    assert load(tried, subject, tmp_path / "own") == "loaded"
    memory = read_memory((tmp_path / "own" / "state" / "releases.json").read_bytes(), "memory")
    assert set(memory.releases[where(subject)].keys) == {
        PROMOTER.public.keyid,
        SECOND_PROMOTER.public.keyid,
    }


def test_what_could_not_be_opened_is_not_remembered(
    subject: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The release before it goes on serving."""

    def full(*_: object, **__: object) -> None:
        raise MissingBackendError("there is no device memory for it")

    (tmp_path / "own").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(ort_session, "open_session", full)
        assert "no device memory" in load(subject.attempt(), subject, tmp_path / "own")
    assert not (tmp_path / "own" / "state" / "releases.json").exists()


def test_what_cannot_be_remembered_is_closed(
    subject: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[object] = []

    def unwritable(*_: object) -> None:
        raise TrustError("no room", "T18")

    def close(session: object) -> None:
        closed.append(session)

    monkeypatch.setattr(trust_files, "remember", unwritable)
    monkeypatch.setattr(ort_session._ServedSession, "close", close)  # noqa: SLF001  what is closed
    (tmp_path / "own").mkdir()
    assert load(subject.attempt(), subject, tmp_path / "own") == "T18"
    assert len(closed) == 1


def test_a_number_never_goes_down_and_is_forgotten_with_all_of_its_keys() -> None:
    memory = Memory().after("m/t/int8", Loaded(seq=5, keys=(A, B)))
    assert memory.after("m/t/int8", Loaded(seq=4, keys=(A,))) == memory
    assert memory.after("m/t/int8", Loaded(seq=5, keys=(A,))) == memory
    later = memory.after("m/t/int8", Loaded(seq=6, keys=(A,)))
    assert later.numbers() == {"m/t/int8": 6}
    assert memory.without({A}) == memory
    assert memory.without({A, B}) == Memory()
    unknown = Memory().after("m/t", Loaded(seq=5, keys=()))
    assert unknown.without({A}) == unknown, "nobody knows who signed it"


def test_what_an_earlier_version_remembered_is_read() -> None:
    old = b'{"releases":{"m/t":7},"schema":1}'
    memory = read_memory(old, "memory")
    assert memory.numbers() == {"m/t": 7}
    assert read_memory(write_memory(memory), "memory") == memory
    for wrong in (b"[]", b'{"schema":1}', b'{"releases":{"m/t":0},"schema":1}'):
        with pytest.raises(TrustError, match="T18"):
            read_memory(wrong, "memory")
