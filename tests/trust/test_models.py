"""An engine is served as the model that it was built as, or as one that its user names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import trtbuild
from tests.trust.commands import recipe, run, signed, works
from trtbuild.errors import TrustError


def signed_twice(place: Path) -> str:
    """Let a second recipe give the same engine, which was built as ``classifier``."""
    engine = signed(place)
    Path(recipe(place)).rename(place / "second.toml")
    report = json.loads(run("engine", str(place / "second.toml"), "--json", "-q"))
    assert report["engines"][0]["sha256"] == engine
    return engine


def test_an_engine_of_two_recipes_is_the_second_ones_where_somebody_says_so(
    place: Path,
) -> None:
    engine = signed_twice(place)
    assert trtbuild.load(engine).inputs
    assert works(trtbuild.load(engine, model="second"))
    with pytest.raises(TrustError, match="the model 'third'") as caught:
        trtbuild.load(engine, model="third")
    assert caught.value.code == "T08"
    assert "was signed as 'classifier' and as 'second'" in str(caught.value)
    assert "To serve it as 'classifier', say so" in str(caught.value)


def test_a_lockfile_pins_an_engine_under_another_name_where_it_is_told(place: Path) -> None:
    engine = signed_twice(place)
    assert "classifier" in run("lock")
    assert "second" not in Path("engines.lock").read_text()
    assert "name the engine, too" in run("lock", "--model", "second", code=2)
    assert "T08" in run("lock", engine, "--model", "third", code=6)
    run("lock", engine, "--model", "second")
    text = Path("engines.lock").read_text()
    assert "classifier" in text
    assert "second" in text
    assert works(trtbuild.load("second", lock="engines.lock"))
    assert works(trtbuild.load(engine, lock="engines.lock", model="second"))
    with pytest.raises(TrustError, match="pins no model"):
        trtbuild.load("second", lock="engines.lock", model="classifier")
    run("lock")
    assert Path("engines.lock").read_text() == text, "an entry that was asked for stays"


def test_a_promotion_is_of_the_name_that_was_built_or_of_one_that_is_given(place: Path) -> None:
    engine = signed_twice(place)
    document = json.loads(run("promote", engine, "--key", "release", "--json"))
    assert document["release"]["model"] == "classifier"
    given = ("--key", "release", "--json", "--model", "second")
    assert json.loads(run("promote", engine, *given))["release"]["model"] == "second"
    assert "no release as 'third'" in run("promote", engine, "--model", "third", code=2)
