"""A lockfile keeps what it pins: nothing leaves it silently, and every field of it counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import trtbuild
from tests.trust.commands import demand_promoters, manifest_of, run, signed
from trtbuild.errors import TrustError


def test_a_pinned_model_leaves_a_lockfile_only_when_it_is_dropped(place: Path) -> None:
    signed(place)
    run("lock")
    good = Path("engines.lock").read_text()
    (place / "empty").mkdir()
    message = run("lock", "--store", str(place / "empty"), code=6)
    assert "classifier on onnxruntime" in message
    assert "--drop classifier" in message
    demand_promoters(place)
    assert "T04" in run("lock", code=6)
    assert Path("engines.lock").read_text() == good
    assert "pins no such model" in run("lock", "--drop", "clasifier", code=2)
    run("lock", "--drop", "classifier")
    assert "engines." not in Path("engines.lock").read_text()
    assert "pins nothing" in run("lock", "--check", code=6)


def test_a_model_that_is_refused_is_listed_beside_what_is_pinned(place: Path) -> None:
    engine = signed(place)
    demand_promoters(place)
    message = run("lock", code=6)
    assert "classifier on onnxruntime" in message
    assert "T04" in message
    assert not Path("engines.lock").exists()
    run("promote", engine, "--key", "release")
    other = place / "store" / "v1" / "att" / ("a" * 64)
    other.mkdir()
    assert f"REFUSED an engine without a record (engine {'a' * 12})" in run("lock")


def test_an_unsigned_engine_that_is_pinned_stays_pinned(place: Path) -> None:
    run("lock", manifest_of(place / "store").sha256)
    before = Path("engines.lock").read_text()
    assert "unsigned" in run("lock")
    assert Path("engines.lock").read_text() == before


def test_a_lockfile_does_not_go_back_to_an_older_release_by_itself(place: Path) -> None:
    engine = signed(place)
    run("lock")
    text = Path("engines.lock").read_text()
    seq = text.rsplit("seq = ", 1)[1].strip()
    later = text.replace(f"seq = {seq}", f"seq = {int(seq) + 1}")
    Path("engines.lock").write_text(later)
    assert "T06" in run("lock", code=6)
    assert Path("engines.lock").read_text() == later
    run("lock", engine)
    assert Path("engines.lock").read_text() == text


def test_a_lockfile_is_replaced_whole(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = signed(place)
    run("lock")
    before = Path("engines.lock").read_text()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in run("lock", engine, code=2)
    assert Path("engines.lock").read_text() == before
    assert [path.name for path in place.glob(".engines*")] == []


def test_every_field_of_an_entry_counts(place: Path) -> None:
    engine = signed(place)
    run("lock")
    good = Path("engines.lock").read_text()
    target = str(manifest_of(place / "store").preimage.target)
    seq = good.rsplit("seq = ", 1)[1].strip()
    for old, new in ((target, f"{target}x"), (f"seq = {seq}", "seq = 0")):
        Path("engines.lock").write_text(good.replace(old, new))
        for name in ("classifier", engine):
            with pytest.raises(TrustError) as caught:
                trtbuild.load(name, lock="engines.lock")
            assert caught.value.code == "T02"
        assert "REFUSED T02" in run("lock", "--check", code=6)


def test_a_model_that_is_not_pinned_is_told_with_those_that_are(place: Path) -> None:
    signed(place)
    run("lock")
    with pytest.raises(TrustError, match=r"'clasifier'.*is pinned: classifier") as caught:
        trtbuild.load("clasifier", lock="engines.lock")
    assert caught.value.code == "T02"
