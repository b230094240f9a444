"""Memos: an answer comes back exactly while everything that it was read from is as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from trtbuild.backends import distributions
from trtbuild.pipeline.memo import merged, recall, remember
from trtbuild.sources.dependencies import (
    ABSENT,
    Dependencies,
    Distribution,
    FileRead,
    FolderListed,
    file_digest,
    folder_digest,
)
from trtbuild.store import Store
from trtbuild.store.counters import flush, totals

if TYPE_CHECKING:
    from pathlib import Path

QUESTION = {"factory": "model.py:make", "profiles": [1, 8]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def reads(*paths: Path) -> Dependencies:
    files = (FileRead(path=str(path), sha256=file_digest(str(path))) for path in paths)
    return Dependencies(files=tuple(files))


def answer(store: Store, question: object = QUESTION) -> object:
    found = recall(store, question)
    return None if found is None else msgspec.json.decode(found)


def test_an_answer_comes_back_until_a_file_changes_and_again_when_it_is_back(
    store: Store, tmp_path: Path
) -> None:
    code = tmp_path / "model.py"
    code.write_text("one")
    assert answer(store) is None
    remember(store, QUESTION, reads(code), {"graph": 1})
    assert answer(store) == {"graph": 1}
    assert answer(store, {"factory": "other"}) is None

    code.write_text("two")
    assert answer(store) is None
    remember(store, QUESTION, reads(code), {"graph": 2})
    assert answer(store) == {"graph": 2}

    code.write_text("one")
    assert answer(store) == {"graph": 1}
    code.unlink()
    assert answer(store) is None


def test_code_that_starts_to_read_another_file_lengthens_the_chain(
    store: Store, tmp_path: Path
) -> None:
    code, data, more = (tmp_path / name for name in ("model.py", "data", "more"))
    code.write_text("one")
    data.write_text("1")
    more.write_text("1")
    remember(store, QUESTION, reads(code), "one")
    code.write_text("two: reads data")
    remember(store, QUESTION, reads(code, data), "two, 1")
    code.write_text("three: reads more, not data")
    remember(store, QUESTION, reads(code, more), "three, 1")
    for text, expected in (("one", "one"), ("two: reads data", "two, 1")):
        code.write_text(text)
        assert answer(store) == expected
    data.write_text("2")
    assert answer(store) is None
    remember(store, QUESTION, reads(code, data), "two, 2")
    assert answer(store) == "two, 2"
    data.write_text("1")
    assert answer(store) == "two, 1"
    code.write_text("three: reads more, not data")
    more.write_text("2")
    assert answer(store) is None


def test_a_file_that_was_not_there_matters_once_it_is(store: Store, tmp_path: Path) -> None:
    missing = tmp_path / "override.toml"
    dependencies = reads(missing)
    assert dependencies.files[0].sha256 == ABSENT
    remember(store, QUESTION, dependencies, "without")
    assert answer(store) == "without"
    missing.write_text("x = 1")
    assert answer(store) is None
    missing.unlink()
    assert answer(store) == "without"


def test_folders_count_by_the_names_in_them(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_text("1")
    listed = FolderListed(path=str(folder), sha256=folder_digest(str(folder)))
    remember(store, QUESTION, Dependencies(folders=(listed,)), 1)
    (folder / "a.png").write_text("2")
    assert answer(store) == 1
    (folder / "b.png").write_text("1")
    assert answer(store) is None


def test_distributions_count_by_their_version(store: Store) -> None:
    package = Distribution(name="numpy", version=distributions.version("numpy"))
    remember(store, QUESTION, Dependencies(distributions=(package,)), 1)
    assert answer(store) == 1
    gone = Distribution(name="no-such-distribution", version="")
    remember(store, {"other": 1}, Dependencies(distributions=(gone,)), 2)
    assert answer(store, {"other": 1}) == 2


def test_nothing_is_remembered_of_what_changed_while_it_was_read(
    store: Store, tmp_path: Path
) -> None:
    code = tmp_path / "model.py"
    code.write_text("one")
    dependencies = reads(code)
    code.write_text("two")
    remember(store, QUESTION, dependencies, "of one or two?")
    assert answer(store) is None
    flush(store)
    (bypass,) = [tally for tally in totals(store) if tally.outcome == "bypass"]
    assert (bypass.kind, bypass.count) == ("memo", 1)
    code.write_text("one")
    assert answer(store) is None


def test_an_answer_without_dependencies_and_one_that_is_null_are_answers(store: Store) -> None:
    remember(store, QUESTION, Dependencies(), [])
    assert answer(store) == []


def test_the_first_answer_stays(store: Store, tmp_path: Path) -> None:
    code = tmp_path / "model.py"
    code.write_text("one")
    remember(store, QUESTION, reads(code), "first")
    remember(store, QUESTION, reads(code), "second")
    assert answer(store) == "first"


def test_merged_dependencies_hold_both_and_the_later_digest(tmp_path: Path) -> None:
    code, data = tmp_path / "a", tmp_path / "b"
    code.write_text("1")
    first = reads(code)
    code.write_text("2")
    data.write_text("1")
    both = merged(first, reads(code, data))
    assert both == reads(code, data)
