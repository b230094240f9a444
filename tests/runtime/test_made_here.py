"""What was made here is remembered apart from the store, by all that a record says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import pytest

import trtbuild
from tests.pipeline import models
from tests.store.engines import engine_key, put_engine
from trtbuild.errors import TrustError
from trtbuild.runtime.made_here import mark_made, was_made_here
from trtbuild.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.store import Record


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRTBUILD_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return put_engine(Store.open(str(tmp_path / "store")), engine_key("sm_89", 3), b"plan")


def test_a_record_counts_with_every_part_of_it(state: Path, record: Record) -> None:
    assert not was_made_here(record)
    assert mark_made(record) == ""
    assert mark_made(record) == "", "again is no error"
    assert was_made_here(record)
    assert [path.stat().st_mode & 0o777 for path in (state / "made").iterdir()] == [0o600]
    for change in (
        {"key": "0" * 64},
        {"kind": "report"},
        {"value": msgspec.Raw(b"{}")},
        {"blobs": (msgspec.structs.replace(record.blobs[0], sha256="1" * 64),)},
    ):
        assert not was_made_here(msgspec.structs.replace(record, **change))


def test_a_mark_that_another_may_have_put_there_does_not_count(
    state: Path, record: Record
) -> None:
    mark_made(record)
    (mark,) = (state / "made").iterdir()
    mark.chmod(0o666)
    assert not was_made_here(record)
    mark.chmod(0o600)
    other = msgspec.structs.replace(record, key="0" * 64)
    mark_made(other)
    for path in (state / "made").iterdir():
        if path != mark:
            path.replace(mark)
    assert not was_made_here(record), "another mark of ours, under its name"
    mark.unlink()
    mark.symlink_to(state)
    assert not was_made_here(record)


def test_a_build_says_what_it_cannot_remember(state: Path, tmp_path: Path) -> None:
    state.write_bytes(b"no folder")
    recipe = models.with_quantization(
        models.recipe(tmp_path, "onnxruntime"), precision="fp32", provider=None
    )
    report = trtbuild.build(recipe, tmp_path / "store")
    (text,) = [each.text for each in report.findings if "TRTBUILD_STATE" in each.text]
    assert os.fspath(state) in text
    state.unlink()
    with pytest.raises(TrustError) as caught:
        trtbuild.load(report.engines[0].key, tmp_path / "store")
    assert caught.value.code == "T17"
