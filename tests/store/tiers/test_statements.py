"""Statements in a tier that others may write to: junk neither hides nor stops the good ones."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from trtbuild.store import Blob, Store, make_record
from trtbuild.store.statements import (
    MAX_STATEMENT_BYTES,
    MAX_STATEMENTS,
    put_statement,
    statements,
)
from trtbuild.store.tiers import transfer
from trtbuild.store.tiers.address import read_address
from trtbuild.store.tiers.connect import connect
from trtbuild.trust import evidence

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.store.tiers.tier import Tier

SUBJECT = hashlib.sha256(b"an engine").hexdigest()
RECORD = make_record(
    "engine", "0" * 64, {}, {}, (Blob(name="engine", sha256=SUBJECT, bytes=9),)
)


@pytest.fixture
def tier(tmp_path: Path) -> Tier:
    return connect(read_address(f"file://{tmp_path / 'mirror'}"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the mirror has the statements about the engine."""
    place = tmp_path / "mirror" / "v1" / "att" / SUBJECT
    place.mkdir(parents=True)
    return place


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def add(folder: Path, content: bytes) -> None:
    (folder / hashlib.sha256(content).hexdigest()).write_bytes(content)


def brought(tier: Tier, store: Store) -> int:
    """Bring the engine, whose bytes are here; return how many statements came with it."""
    store.put_bytes("engine", b"an engine")
    before = len(statements(store, SUBJECT))
    assert transfer.bring(tier, store, RECORD)
    return len(statements(store, SUBJECT)) - before


def test_many_releases_are_all_brought(tier: Tier, folder: Path, store: Store) -> None:
    contents = {b"release %d" % index for index in range(200)}
    for content in contents:
        add(folder, content)
    assert brought(tier, store) == 200
    assert set(statements(store, SUBJECT)) == contents
    add(folder, b"one more")
    assert brought(tier, store) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"other bytes", "another digest"), (bytes(MAX_STATEMENT_BYTES + 1), "more than the")],
)
def test_a_damaged_one_is_passed_over_and_told(
    content: bytes, words: str, tier: Tier, folder: Path, store: Store
) -> None:
    add(folder, b"good")
    (folder / ("0" * 64)).write_bytes(content)
    (folder / ("f" * 64)).write_bytes(content)
    assert brought(tier, store) == 1
    assert statements(store, SUBJECT) == (b"good",)
    assert len([each for each in store.incidents if words in each.reason]) == 2


def test_what_is_too_much_is_counted(tier: Tier, folder: Path, store: Store) -> None:
    for index in range(MAX_STATEMENTS + 7):
        add(folder, b"%d" % index)
    (folder / "no digest").write_bytes(b"x")
    put_statement(store, SUBJECT, b"known")
    assert brought(tier, store) == MAX_STATEMENTS - 1
    (incident,) = store.incidents
    assert incident.reason.startswith("8 statements were passed over: at most 1024")
    assert brought(tier, store) == 0


def test_a_store_reads_no_more_than_can_count(store: Store) -> None:
    for index in range(MAX_STATEMENTS + 40):
        put_statement(store, SUBJECT, b"%d" % index)
    assert len(statements(store, SUBJECT)) == MAX_STATEMENTS + 1
    assert MAX_STATEMENTS == evidence.MAX_STATEMENTS
