"""The commands that care for a store: pin, unpin, gc, verify, stats."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

import trtbuild
from tests.cli.running import command
from tests.store.engines import engine_key, put_engine
from trtbuild.errors import StoreError
from trtbuild.store import Store, counters
from trtbuild.store.automatic import collect_if_asked, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Done

    Cache = Callable[..., Done]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def cache(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Cache:
    def run(*arguments: str) -> Done:
        return command(monkeypatch, capfd, "cache", *arguments, "--store", store.root)

    return run


def old_engine(store: Store, arch: str) -> str:
    record = put_engine(store, engine_key(arch, 3), arch.encode())
    for path in store.top.glob("*/*/*/*"):
        if path.is_file():
            os.utime(path, (time.time() - 90 * 86400,) * 2)
    return record.blobs[0].sha256


def test_a_pinned_engine_survives_a_collection_and_an_unpinned_one_does_not(
    store: Store, cache: Cache
) -> None:
    kept, gone = old_engine(store, "sm_89"), old_engine(store, "sm_120")
    assert cache("pin", kept[:12], "--name", "release").out == (
        f"pinned {kept[:12]} as pins/release\n"
    )
    old_engine(store, "sm_120")
    shown = cache("gc", "--high", "0", "--dry-run", "--json").document
    assert (shown["dry_run"], shown["records"], shown["blobs"]) == (True, 2, 1)
    done = cache("gc", "--high", "0")
    assert done.code == 0
    assert "removed 2 records and 1 blob" in done.out
    assert "still above --high" in done.out
    assert store.path(kept).exists()
    assert not store.path(gone).exists()
    assert [each["name"] for each in cache("pin", "--json").document["pins"]] == [
        "pins/release"
    ]
    assert cache("unpin", "release").out == "unpinned pins/release\n"
    assert "no pins" in cache("pin").out
    assert cache("unpin", "release").code == 2


def test_gc_removes_nothing_from_a_store_below_its_limit(store: Store, cache: Cache) -> None:
    kept = old_engine(store, "sm_89")
    assert cache("gc").code == 0
    assert store.path(kept).exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--high", "much"], "expected a size"),
        (["--high", "1GB", "--low", "2GB"], "above --high"),
        (["--grace", "soon"], "expected a time"),
        (["--keep-days", "nan"], "not a number"),
        (["--keep-days", "inf"], "36500"),
        (["--keep-days", "1e30"], "36500"),
    ],
)
def test_what_gc_does_not_understand_is_refused(
    arguments: list[str], words: str, cache: Cache
) -> None:
    done = cache("gc", *arguments)
    assert done.code == 2
    assert words in done.err


def test_a_damaged_pin_stops_the_collection_only_and_can_be_set_aside(
    store: Store, cache: Cache
) -> None:
    kept = old_engine(store, "sm_89")
    cache("pin", kept[:12], "--name", "good")
    for name in ("bad", "worse"):
        (store.top / "refs" / "pins" / name).write_bytes(b"junk")
    shown = cache("pin")
    assert (shown.code, shown.out.split()[0]) == (0, "pins/good")
    assert "refs/pins/bad: not a pin" in shown.err
    assert cache("pin", kept[:12], "--name", "better").code == 0
    assert cache("unpin", "good").code == 0
    assert cache("unpin", "worse").code == 0
    done = cache("gc", "--high", "0")
    assert (done.code, store.path(kept).exists()) == (6, True)
    assert "refs/pins/bad" in done.message
    assert cache("verify", "-q").code == 6
    assert cache("verify", "-q", "--repair").code == 0
    assert cache("gc").code == 0
    assert [each["name"] for each in cache("pin", "--json").document["pins"]] == ["pins/better"]


def test_a_name_for_a_pin_needs_an_engine(cache: Cache) -> None:
    assert "Give ENGINE" in cache("pin", "--name", "release").message


def test_sizes_have_decimal_and_binary_prefixes() -> None:
    texts = ("1000", "50GB", "1.5 GiB", "2k", "3MiB", "1T")
    sizes = [1000, 50 * 10**9, 3 << 29, 2000, 3 << 20, 10**12]
    assert [parse_size(text, "--high") for text in texts] == sizes


def test_verify_leaves_with_6_until_the_store_is_repaired(store: Store, cache: Cache) -> None:
    sha256 = old_engine(store, "sm_89")
    assert cache("verify", "-q").code == 0
    store.path(sha256).unlink()
    store.path(sha256).write_bytes(b"damaged")
    done = cache("verify", "-q")
    assert done.code == 6
    assert "corrupt: " in done.out
    assert "--repair" in done.message
    found = cache("verify", "-q", "--repair", "--json")
    assert (found.code, found.document["sound"]) == (0, True)
    assert cache("verify", "-q").code == 0


def test_stats_say_the_hit_rate_and_write_a_file_for_monitoring(
    store: Store, cache: Cache, tmp_path: Path
) -> None:
    assert "nothing asked yet" in cache("stats").out
    for outcome, number in (("hit", 3), ("miss", 1)):
        tally = counters.Tally(tier="local", kind="run", outcome=outcome, count=number)
        counters.count(store, tally)
    counters.flush(store)
    file = tmp_path / "trtbuild.prom"
    done = cache("stats", "--openmetrics", str(file), "--json")
    assert (done.document["hit_rate"], done.document["hits"]) == (0.75, 3)
    assert file.read_text().endswith("# EOF\n")
    assert "hit rate        75.0%" in cache("stats").out
    assert "chunks" not in done.document


def test_stats_say_on_demand_what_shared_chunks_would_save(store: Store, cache: Cache) -> None:
    put_engine(store, engine_key("sm_89", 3), bytes(1 << 20))
    found = cache("stats", "--chunks", "--json", "-q").document["chunks"]
    assert found["engines"] == {
        "blobs": 1,
        "size_bytes": 1 << 20,
        "distinct_bytes": 1 << 18,
        "saved_share": 0.75,
    }
    done = cache("stats", "--chunks")
    assert "chunks, engines 1.0 MB in 1 blobs, 262.1 kB in distinct chunks" in done.out
    assert "would save 75.0%" in done.out
    assert "chunks: 1 of 1" in done.err


def test_a_store_is_collected_by_itself_only_where_the_environment_asks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    sha256 = old_engine(store, "sm_89")
    collect_if_asked(store, said.append)
    assert store.path(sha256).exists()
    monkeypatch.setenv("TRTBUILD_CACHE_HIGH", "0")
    collect_if_asked(store, said.append)
    assert not store.path(sha256).exists()
    assert len(said) == 1
    again = old_engine(store, "sm_89")
    collect_if_asked(store, said.append)
    assert store.path(again).exists(), "not twice in an hour"


def test_a_mistyped_store_is_refused_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "strore"
    for words in (
        ["cache", "ls"],
        ["cache", "stats"],
        ["cache", "verify"],
        ["cache", "gc"],
        ["cache", "pin"],
        ["cache", "push", "--all", "--to", str(tmp_path)],
        ["lock"],
        *([name, "0123456789ab"] for name in ("inspect", "verify", "bench")),
    ):
        done = command(monkeypatch, capfd, *words, "--store", absent)
        assert done.code == 6, words
        assert done.message.startswith(f"error: no store at {absent}: "), words
        assert not absent.exists(), words
    with pytest.raises(StoreError, match="no store at"):
        trtbuild.load("0123456789ab", str(absent))
    assert not absent.exists()
