"""Collections that run beside builds and lookups, and that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.reliability.filling import fill, key_of
from tests.store.engines import engine_key, put_engine
from trtbuild.store import Store
from trtbuild.store.audit import audit
from trtbuild.store.collect import Limits, collect
from trtbuild.store.pins import pin

if TYPE_CHECKING:
    from trtbuild.store import Record

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
nightly = pytest.mark.nightly


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def quiet(_: str) -> None:
    """Say nothing."""


def old_engines(store: Store) -> tuple[Record, Record]:
    """Put two engines that were last used a month ago; only the first is pinned."""
    month_ago = time.time() - 30 * 86400
    pinned = put_engine(store, engine_key("sm_89", 3), b"pinned")
    other = put_engine(store, engine_key("sm_89", 4), b"other")
    pin(store, pinned, "release")
    for record in (pinned, other):
        sha256 = record.blobs[0].sha256
        for place in (f"engine/{record.key[:2]}/{record.key}", f"plan/{sha256[:2]}/{sha256}"):
            os.utime(store.top / "ac" / place, (month_ago, month_ago))
        os.utime(store.path(sha256), (month_ago, month_ago))
    return pinned, other


@pytest.mark.parametrize("processes", [12, pytest.param(64, marks=nightly)])
def test_16_keys_are_made_once_while_a_collection_runs(store: Store, processes: int) -> None:
    """C2."""
    fill(store, 200)
    pinned, other = old_engines(store)
    done = threading.Event()
    removed: list[int] = []

    def collecting() -> None:
        while not done.is_set():
            removed.append(collect(store, Limits(high_bytes=0, low_bytes=0)).records)

    collector = threading.Thread(target=collecting)
    collector.start()
    command = [sys.executable, str(HERE / "load.py"), str(store.root), "16"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        for _ in range(processes)
    ]
    answers = [json.loads(process.communicate()[0]) for process in running]
    done.set()
    collector.join()
    assert sum(answer["made"] for answer in answers) == 16
    assert len({tuple(answer["digests"]) for answer in answers}) == 1
    assert sum(removed) == 200 + 2  # the other engine, and the record that finds it
    assert store.get("engine", other.key) is None
    assert store.get("engine", pinned.key)
    assert store.read(pinned.blobs[0].sha256) == b"pinned"
    assert audit(store, repair=False, say=quiet).sound


COLLECT = """
import json, os, signal, sys, time
from trtbuild.store import Store, collect
store, low, left = Store.open(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
remove = collect._remove
def remove_some(path, before_ns):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return remove(path, before_ns)
collect._remove = remove_some
begun = time.monotonic()
found = collect.collect(store, collect.Limits(high_bytes=low + 1, low_bytes=low))
print(json.dumps([time.monotonic() - begun, found.records, found.after_bytes]))
"""


@pytest.mark.parametrize("entries", [3_000, pytest.param(100_000, marks=nightly)])
def test_entries_are_collected_though_killed_and_nothing_live_is_lost(
    store: Store, entries: int
) -> None:
    """G1: killed in the middle, resumed, and looked up meanwhile; of 100,000 in 30 s."""
    fill(store, entries)
    pinned, other = old_engines(store)
    low = entries * 300
    command = [sys.executable, "-c", COLLECT, str(store.root), str(low)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([*command, str(entries // 5)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL, "it was over before it could be killed"
    half = audit(store, repair=False, say=quiet)
    assert half.faults == ()
    assert half.size_bytes > low
    second = subprocess.Popen([*command, "0"], env=environment, stdout=subprocess.PIPE)
    waited_s = []
    while second.poll() is None:
        begun = time.perf_counter()
        assert store.get("engine", pinned.key)
        waited_s.append(time.perf_counter() - begun)
    seconds, removed, after_bytes = json.loads(second.communicate()[0])
    waited_s.sort()
    p99_ms = 1000 * waited_s[int(0.99 * len(waited_s))]
    print(  # noqa: T201  the record of the run
        f"{entries} entries: {half.records} left by the kill; {removed} more collected in "
        f"{seconds:.1f} s; {len(waited_s)} lookups meanwhile, p99 {p99_ms:.2f} ms, "
        f"longest {1000 * waited_s[-1]:.1f} ms"
    )
    assert after_bytes <= low
    assert removed > entries // 10
    assert store.read(pinned.blobs[0].sha256) == b"pinned"
    assert store.get("engine", other.key) is None
    assert store.get("ranges", key_of(entries - 1))
    assert store.get("ranges", key_of(0)) is None
    assert audit(store, repair=False, say=quiet).sound
