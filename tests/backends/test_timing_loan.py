"""A build works on a copy of its timing cache: nothing beside it can be reached or written."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.backends import bubblewrap, building, graphs
from trtbuild.backends import isolation, timing_loan
from trtbuild.backends.job import Success, encode
from trtbuild.errors import BuildError
from trtbuild.recipe import Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trtbuild.backends.job import BuildRequest
    from trtbuild.engine import BuildRecord

    Build = Callable[[BuildRequest, str], BuildRecord]

HEAD = """
import json, os, pathlib
success, beside, shared = {success!r}, {beside!r}, {shared!r}
cache = pathlib.Path(json.load(open("job.json"))["request"]["timing_cache"])
pathlib.Path("engine").write_bytes(b"engine")
pathlib.Path("outcome.json").write_text(success)
"""


@pytest.fixture
def wish(tmp_path: Path) -> BuildRequest:
    for name in ("model", "out", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "home" / "profile").write_text("as it was")
    (tmp_path / "home" / "times").write_bytes(b"old")
    graph = graphs.residual(tmp_path / "model" / "m.onnx", None)
    request = building.request(graph, building.ORT, tmp_path / "out" / "engine")
    return msgspec.structs.replace(request, timing_cache=tmp_path / "home" / "times")


@pytest.fixture
def build(wish: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> Build:
    honest = msgspec.structs.replace(wish, timing_cache=None)
    record = isolation.build_isolated(honest, Limits(build_seconds=120))
    wish.out.unlink()

    def run(request: BuildRequest, code: str) -> BuildRecord:
        assert request.timing_cache is not None
        program = HEAD.format(
            success=encode(Success(record=record)).decode(),
            beside=str(request.timing_cache.parent / "profile"),
            shared=str(request.timing_cache),
        )
        monkeypatch.setattr(isolation, "_CHILD", [sys.executable, "-c", program + code])
        return isolation.build_isolated(request, Limits(build_seconds=60))

    return run


def times(wish: BuildRequest) -> bytes:
    assert wish.timing_cache is not None
    assert sorted(
        p.name for p in wish.timing_cache.parent.iterdir() if p.suffix != ".lock"
    ) == [
        "profile",
        "times",
    ]
    return wish.timing_cache.read_bytes()


def test_what_a_build_measured_becomes_the_cache(wish: BuildRequest, build: Build) -> None:
    record = build(wish, "cache.write_bytes(cache.read_bytes() + b' and new')")
    assert times(wish) == b"old and new"
    assert not record.warnings


def test_a_cache_that_was_refused_may_shrink(wish: BuildRequest, build: Build) -> None:
    build(wish, "cache.write_bytes(b'n')")
    assert times(wish) == b"n"


def test_a_cache_that_is_not_there_yet_is_made(wish: BuildRequest, build: Build) -> None:
    assert wish.timing_cache is not None
    wish.timing_cache.unlink()
    build(wish, "assert not cache.exists(); cache.write_bytes(b'new')")
    assert times(wish) == b"new"


@pytest.mark.parametrize(
    ("left", "kept"), [("b'new'", b"of another build"), ("b'n' * 99", b"n" * 99)]
)
def test_of_two_builds_at_once_the_larger_cache_stays(
    left: str, kept: bytes, wish: BuildRequest, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTBUILD_SANDBOX", "off")  # the child plays the other build too
    other = "pathlib.Path(shared).write_bytes(b'of another build')"
    build(wish, f"cache.write_bytes({left}); {other}")
    assert times(wish) == kept


def test_a_pinned_cache_stays_as_it_is(wish: BuildRequest, build: Build) -> None:
    mode = f"pinned:{hashlib.sha256(b'old').hexdigest()}"
    pinned = msgspec.structs.replace(wish, settings=(("timing_cache", mode),))
    build(pinned, "cache.write_bytes(cache.read_bytes() + b' and new')")
    assert times(wish) == b"old"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("cache.unlink(); os.symlink(beside, cache)", "is a link"),
        ("cache.unlink(); os.mkfifo(cache)", "not a regular file"),
        ("os.link(cache, 'second')", "2 names"),
        (f"os.truncate(cache, {timing_loan.MAX_BYTES + 1})", "more than 256 MiB"),
    ],
)
def test_what_is_no_cache_is_not_taken_and_is_told(
    make: str, words: str, wish: BuildRequest, build: Build
) -> None:
    record = build(wish, make)
    (said,) = record.warnings
    assert "was not extended" in said
    assert words in said
    assert times(wish) == b"old"


def test_a_cache_that_cannot_be_written_is_a_finding(wish: BuildRequest, build: Build) -> None:
    assert wish.timing_cache is not None
    wish.timing_cache.with_name("times.lock").mkdir()
    (said,) = build(wish, "cache.write_bytes(b'longer')").warnings
    assert "was not extended" in said


def test_a_cache_that_is_a_folder_is_an_error(wish: BuildRequest) -> None:
    assert wish.timing_cache is not None
    folder = msgspec.structs.replace(wish, timing_cache=wish.timing_cache.parent)
    with pytest.raises(BuildError, match=r"cannot be read: Is a directory: .*--timing-cache"):
        isolation.build_isolated(folder, Limits(build_seconds=60))


def test_what_is_beside_a_cache_is_out_of_reach(
    wish: BuildRequest, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the cache was writable: a user's home, or a store's blobs."""
    bubblewrap.require(monkeypatch)
    seen = "os.path.exists(beside), os.path.exists(shared)"
    tries = "pathlib.Path(beside).parent.mkdir(parents=True)"
    build(wish, f"cache.write_text(str(({seen}))); {tries}; open(beside, 'w').write('evil')")
    assert times(wish) == b"(False, False)"
    assert wish.timing_cache is not None
    assert (wish.timing_cache.parent / "profile").read_text() == "as it was"
