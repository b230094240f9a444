"""Counters: cheap, safe among processes, and never in the way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.store.engines import engine_key, put_engine
from trtbuild.canonical import digest
from trtbuild.errors import StoreError
from trtbuild.store import Store, counters, make_record
from trtbuild.store.counters import Tally, count, flush, totals
from trtbuild.store.lease import get_or_make
from trtbuild.store.metrics import summarize, write

if TYPE_CHECKING:
    from trtbuild.store import Record

ROOT = Path(__file__).parents[2]
HIT = Tally(tier="local", kind="engine", outcome="hit", count=1, size_bytes=10, saved_s=0.5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def test_hits_misses_and_what_they_saved_are_counted(store: Store) -> None:
    key = engine_key("sm_89", 3)

    def make() -> Record:
        return put_engine(store, key, b"plan")

    for _ in range(3):
        get_or_make(store, "engine", key.digest, make)
    flush(store)
    found = {tally.outcome: tally for tally in totals(store)}
    assert (found["miss"].count, found["hit"].count) == (1, 2)
    assert (found["hit"].size_bytes, found["hit"].saved_s) == (8, 3.0)


def test_an_error_is_no_miss_and_damage_is_told_apart(store: Store) -> None:
    key = digest("t", 1)
    store.put(make_record("ranges", key, {}, 1))
    folder = store.top / "ac" / "ranges" / key[:2]
    (folder / key).unlink()
    (folder / key).write_bytes(b"damaged")
    get_or_make(store, "ranges", key, lambda: make_record("ranges", key, {}, 2))
    (folder / key).unlink()
    (folder / key).mkdir()
    with pytest.raises(StoreError):
        get_or_make(store, "ranges", key, lambda: make_record("ranges", key, {}, 3))
    flush(store)
    outcomes = {tally.outcome: tally.count for tally in totals(store)}
    assert outcomes == {"corrupt": 1, "miss": 1, "error": 1}


def test_40_processes_that_count_at_once_lose_nothing(store: Store) -> None:
    program = (
        "import sys\n"
        "from trtbuild.store import Store\n"
        "from trtbuild.store.counters import Tally, count\n"
        "store = Store.open(sys.argv[1])\n"
        "for _ in range(50):\n"
        "    count(store, Tally(tier='local', kind='x', outcome='hit', count=1))\n"
    )
    command = [sys.executable, "-c", program, str(store.root)]
    for _ in range(4):
        started = [subprocess.Popen(command, cwd=ROOT) for _ in range(10)]
        assert [process.wait() for process in started] == [0] * 10
    assert totals(store) == (Tally(tier="local", kind="x", outcome="hit", count=2000),)


def test_a_forked_child_writes_only_what_it_counted(store: Store) -> None:
    count(store, HIT)
    pid = os.fork()
    if not pid:
        count(store, HIT)
        flush(store)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    flush(store)
    assert totals(store)[0].count == 2


def test_a_line_that_was_cut_short_spoils_no_other(store: Store) -> None:
    count(store, HIT)
    flush(store)
    (path,) = (store.top / "counters").glob("*.jsonl")
    with path.open("ab") as file:
        file.write(b'\n[{"tier":"local","kind":"eng')
    count(store, HIT)
    flush(store)
    assert totals(store)[0].count == 2


def test_counting_never_fails(store: Store) -> None:
    (store.top / "counters").write_bytes(b"no folder")
    count(store, HIT)
    flush(store)
    assert totals(store) == ()


def test_days_that_are_over_are_folded_and_counted_once(store: Store) -> None:
    folder = store.top / "counters"
    count(store, HIT)
    flush(store)
    (today,) = folder.glob("*.jsonl")
    old = folder / "20260101.jsonl"
    old.write_bytes(today.read_bytes() * 3)
    counters.fold(store)
    assert sorted(path.name for path in folder.iterdir()) == [today.name, "total.json"]
    assert totals(store)[0].count == 4
    # A crash between writing the total and deleting the day: it is not counted again.
    old.write_bytes(today.read_bytes() * 3)
    assert totals(store)[0].count == 4
    counters.fold(store)
    assert totals(store)[0].count == 4


def test_the_metrics_file_is_whole_and_in_openmetrics_format(tmp_path: Path) -> None:
    tallies = (HIT, Tally(tier="s3", kind="engine", outcome="error", count=2))
    path = tmp_path / "trtbuild.prom"
    write(path, summarize(tallies))
    lines = path.read_text().splitlines()
    assert lines[-1] == "# EOF"
    sample = re.compile(r'trtbuild_[a-z_]+_total\{(?:[a-z]+="[a-z0-9-]+",?)+\} [0-9.]+')
    samples = [line for line in lines if not line.startswith("#")]
    assert len(samples) == 4
    assert all(sample.fullmatch(line) for line in samples)
    label = 'tier="local",kind="engine",outcome="hit"'
    assert f"trtbuild_cache_saved_seconds_total{{{label}}} 0.5" in samples
    assert list(tmp_path.glob(".*")) == []


def test_a_tier_of_any_name_leaves_the_metrics_file_valid(tmp_path: Path) -> None:
    name = 'sh"are\\of\nall'
    path = tmp_path / "trtbuild.prom"
    write(path, summarize((Tally(tier=name, kind="engine", outcome="hit", count=2),)))
    (sample,) = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    found = re.fullmatch(r'\S+\{tier="((?:[^"\\\n]|\\[\\"n])*)",kind="engine",.*\} 2', sample)
    assert found, sample
    escapes = {r"\\": "\\", r"\"": '"', r"\n": "\n"}
    assert re.sub(r"\\.", lambda each: escapes[each[0]], found[1]) == name


def test_a_summary_counts_errors_and_bypasses_as_neither_hit_nor_miss() -> None:
    others = tuple(
        Tally(tier="local", kind="x", outcome=outcome, count=count)
        for outcome, count in (("miss", 3), ("error", 5), ("bypass", 7))
    )
    found = summarize((HIT, *others))
    assert (found.hit_rate, found.errors, found.bypasses) == (0.25, 5, 7)
    assert summarize(()).hit_rate is None
