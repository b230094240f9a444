"""The process of a first load: what it may print, take and write, and when it starts again."""

from __future__ import annotations

import resource
import sys
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from trtbuild.backends import ort_session
from trtbuild.engine import Manifest
from trtbuild.errors import TrustError
from trtbuild.runtime import canary
from trtbuild.store import Store

if TYPE_CHECKING:
    from pathlib import Path

TAKE_ALL = "import os, sys, time\nsys.stdin.buffer.read()\n"


@pytest.fixture
def engine(place: Path) -> tuple[Manifest, bytes]:
    store = Store.open(str(place / "store"))
    manifest = next(iter(store.records("engine"))).read(Manifest)
    return manifest, store.read(manifest.sha256)


def refusal(
    engine: tuple[Manifest, bytes], code: str, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> str:
    """Return why an engine of 64 MiB is refused whose child runs ``code``."""
    monkeypatch.setattr(canary, "_CHILD", ("-c", code))
    with pytest.raises(TrustError) as caught:
        canary.require(engine[0], engine[1] + bytes(64 << 20), seconds)
    assert caught.value.code == "T15"
    return str(caught.value)


def test_of_what_a_child_prints_the_end_is_kept(
    engine: tuple[Manifest, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flood = "for _ in range(600): os.write(1, bytes(1 << 20))\nprint('the end'); sys.exit(1)"
    said = refusal(engine, TAKE_ALL + flood, monkeypatch, 60)
    assert "the end" in said
    assert len(said) < 3000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 << 10, "KiB"


def test_a_child_that_takes_nothing_is_killed_in_time(
    engine: tuple[Manifest, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.monotonic()
    said = refusal(engine, "import time; time.sleep(60)", monkeypatch, 2)
    assert "not done after 2 s" in said
    assert time.monotonic() - started < 20


def test_a_child_may_leave_before_it_took_all(
    engine: tuple[Manifest, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refusal(engine, "print('no'); raise SystemExit(1)", monkeypatch, 60)
    assert "in a child process no: expected" in said


LIMITS = """
import resource, sys
from trtbuild.runtime import canary, canary_child
class Trial:
    seconds, memory_bytes = 7, 0
canary_child._limit(Trial)
names = ("CORE", "CPU", "FSIZE", "NOFILE")
print(*(resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1] for name in names))
sys.exit(1)
"""


def test_limits_hold_without_a_sandbox_too(
    engine: tuple[Manifest, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTBUILD_SANDBOX", "off")
    said = refusal(engine, LIMITS, monkeypatch, 60)
    assert f"0 {7 * 64} {4 << 30} 1024" in said


def test_another_library_or_manifest_is_tried_again(
    engine: tuple[Manifest, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version-compatible engine runs in a library that is not its builder's."""
    manifest, data = engine
    canary.require(manifest, data, 60)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    canary.require(manifest, data, 60)
    outputs = (msgspec.structs.replace(manifest.outputs[0], name="z"), *manifest.outputs[1:])
    inputs = (msgspec.structs.replace(manifest.inputs[0], dtype="int8"), *manifest.inputs[1:])
    for changed in ({"outputs": outputs}, {"inputs": inputs}):
        with pytest.raises(TrustError, match="ended with 1"):
            canary.require(msgspec.structs.replace(manifest, **changed), data, 60)
    monkeypatch.setattr(ort_session, "version", lambda backend: f"{backend} 99")
    with pytest.raises(TrustError, match="ended with 1"):
        canary.require(manifest, data, 60)
