"""A builder that a model took over does not get out through the files that it leaves."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.backends import building, graphs
from trtbuild.backends import isolation
from trtbuild.backends.job import Success, encode
from trtbuild.errors import BuildError
from trtbuild.recipe import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.backends.job import BuildRequest

SECRET = "a private key"  # noqa: S105  a word to look for
HEAD = """
import os, time
secret, success = {secret!r}, {success!r}
NO_TEXT = b'{{"type":"failure","error":"\\xff","message":""}}'
def leave(name, text):
    with open(name, "w") as file:
        file.write(text)
"""


@pytest.fixture
def wish(tmp_path: Path) -> BuildRequest:
    (tmp_path / "model").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "secret").write_text(SECRET)
    graph = graphs.residual(tmp_path / "model" / "m.onnx", None)
    return building.request(graph, building.ORT, tmp_path / "out" / "engine")


def hostile(
    wish: BuildRequest, code: str, monkeypatch: pytest.MonkeyPatch, seconds: int = 60
) -> str:
    """Build with a child that runs ``code`` in its folder; return the error's text."""
    record = building.build(wish.graph, wish.target, wish.out)
    wish.out.unlink()
    secret = str(wish.out.parent.parent / "secret")
    success = encode(Success(record=record)).decode()
    program = HEAD.format(secret=secret, success=success) + code
    monkeypatch.setattr(isolation, "_CHILD", [sys.executable, "-c", program])
    with pytest.raises(BuildError) as caught:
        isolation.build_isolated(wish, Limits(build_seconds=seconds))
    assert not os.path.lexists(wish.out)
    assert not any(wish.out.parent.iterdir())
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("os.symlink(secret, 'engine')", "'engine' is a link or a socket"),
        ("os.mkfifo('engine')", "'engine' is not a regular file"),
        ("os.mkdir('engine')", "'engine' is not a regular file"),
        ("leave('a', 'b'); os.link('a', 'engine')", "'engine' has 2 names"),
        ("pass", "there is no 'engine'"),
    ],
)
def test_what_is_no_engine_of_its_own_is_not_published(
    make: str, words: str, wish: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = hostile(wish, f"{make}\nleave('outcome.json', success)", monkeypatch)
    assert words in said
    assert "do not use it" in said


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("os.mkfifo('outcome.json')", "'outcome.json' is not a regular file"),
        ("os.symlink(secret, 'outcome.json')", "'outcome.json' is a link"),
        ("leave('outcome.json', ' ' * (64 << 20) + ' ')", "more than 64 MiB"),
        ("leave('outcome.json', '[' * 10**6)", "without an outcome"),
        ("open('outcome.json', 'wb').write(NO_TEXT)", "without an outcome"),
    ],
)
def test_an_outcome_that_is_none_is_an_error(
    make: str, words: str, wish: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert words in hostile(wish, make, monkeypatch)


@pytest.mark.parametrize("make", ["os.mkfifo('progress')", "os.symlink(secret, 'progress')"])
def test_progress_neither_stops_the_clock_nor_shows_another_file(
    make: str, wish: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.monotonic()
    said = hostile(wish, f"{make}; time.sleep(60)", monkeypatch, seconds=3)
    assert "did not end within 3 s and was killed:" in said
    assert time.monotonic() - started < 30


def test_of_progress_the_beginning_is_said(
    wish: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = hostile(wish, "leave('progress', 'x' * 10**6); os._exit(3)", monkeypatch)
    assert 4000 < len(said) < 5000
