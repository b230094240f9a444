"""What a collection removes, and what it must never remove."""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.store.engines import engine_key, put_engine
from trtbuild.canonical import digest
from trtbuild.errors import StoreError, UsageError
from trtbuild.store import Store, make_record
from trtbuild.store.audit import audit
from trtbuild.store.checkpoint import checkpoint
from trtbuild.store.collect import Limits, collect
from trtbuild.store.lease import flight
from trtbuild.store.pins import pin, pins, unpin
from trtbuild.store.remains import remains, remove
from trtbuild.store.statements import put_statement

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.store import Record

BLOB_BYTES = 10_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def limits(high: int, low: int) -> Limits:
    return Limits(high_bytes=high, low_bytes=low, keep_s=3600, grace_s=3600, patience_s=5)


SMALL = limits(0, 0)


def put(store: Store, number: int, kind: str = "ranges") -> Record:
    data = number.to_bytes(4, "big") * (BLOB_BYTES // 4)
    blob = store.put_bytes("data", data)
    key = digest("test", number)
    return store.put(make_record(kind, key, {}, number, (blob,)))


def age(store: Store, record: Record, hours: float) -> None:
    """Let a record, and what it names, be last used and made so long ago."""
    then = time.time() - hours * 3600
    for path in (
        store.top / "ac" / record.kind / record.key[:2] / record.key,
        *(store.path(blob.sha256) for blob in record.blobs),
    ):
        os.utime(path, (then, then))


def age_all(store: Store, hours: float) -> None:
    then = time.time() - hours * 3600
    for path in [*(store.top / "ac").rglob("*"), *(store.top / "cas").rglob("*")]:
        os.utime(path, (then, then))


def blobs(store: Store) -> int:
    return sum(path.is_file() for path in (store.top / "cas").rglob("*"))


def test_what_was_not_used_for_longest_goes_first_until_the_store_is_small(
    store: Store,
) -> None:
    records = [put(store, number) for number in range(10)]
    for record, hours in zip(records, (30, 10, 50, 20, 60, 40, 90, 80, 70, 100), strict=True):
        age(store, record, hours)
    before = collect(store, limits(10**9, 0)).before_bytes
    found = collect(store, limits(before - 1, before // 2))
    assert found.records == found.blobs == 5
    left = [number for number, record in enumerate(records) if store.get("ranges", record.key)]
    assert left == [0, 1, 2, 3, 5]
    assert found.after_bytes <= before // 2
    assert collect(store, limits(before - 1, before // 2)).records == 0


def test_a_store_below_its_limit_keeps_everything_but_old_blobs_without_a_record(
    store: Store,
) -> None:
    age(store, put(store, 1), 1000)
    lost, fresh = store.put_bytes("x", b"old"), store.put_bytes("x", b"young")
    os.utime(store.path(lost.sha256), (0, 0))
    found = collect(store, limits(10**9, 0))
    assert (found.records, found.blobs) == (0, 1)
    assert not store.path(lost.sha256).exists()
    assert store.path(fresh.sha256).exists()


def test_what_is_young_used_leased_or_pinned_stays(store: Store) -> None:
    old, used, leased = (put(store, number) for number in range(3))
    engine = put_engine(store, engine_key("sm_89", 3), b"plan")
    network = put_engine(store, engine_key("sm_120", 3), b"other")
    age_all(store, 100)
    pin(store, engine, "release")
    assert store.get(used.kind, used.key)
    young = put(store, 3)
    # A lease of another kind, so that the record of the key is not looked up, hence used.
    with flight(store, "other", leased.key):
        found = collect(store, SMALL)
    assert not found.small_enough
    kept = [each for each in (old, used, leased, young) if store.get(each.kind, each.key)]
    assert kept == [used, leased, young]
    assert store.get("engine", engine.key)
    assert store.get("plan", engine.blobs[0].sha256)
    assert store.get("engine", network.key) is None


def test_a_pin_keeps_the_network_and_what_was_measured(store: Store) -> None:
    engine = put_engine(store, engine_key("sm_89", 3), b"plan")
    network = engine_key("sm_89", 3).network_sha256
    blob = store.put_bytes("model.onnx", b"network")
    kept = [
        make_record("network", digest("t", 1), {}, {"sha256": network, "inputs": []}, (blob,)),
        make_record("report", digest("t", 2), {"engine_sha256": engine.blobs[0].sha256}, {}),
    ]
    gone = [
        make_record("network", digest("t", 3), {}, {"sha256": digest("t", "other")}),
        make_record("report", digest("t", 4), {"engine_sha256": digest("t", "other")}, {}),
    ]
    for record in (*kept, *gone):
        store.put(record)
    pin(store, engine, "")
    age_all(store, 100)
    collect(store, SMALL)
    assert all(store.get(record.kind, record.key) for record in kept)
    assert not any(store.get(record.kind, record.key) for record in gone)


def test_what_a_remembered_run_was_answered_with_is_used_when_the_run_is(
    store: Store,
) -> None:
    ranges, other = put(store, 1), put(store, 2)
    answer = {"stages": [{"key": ranges.key, "name": "calibrate"}], "engines": []}
    memo = store.put(
        make_record("memo", digest("t", 1), {}, {"look": {"files": []}, "answer": answer})
    )
    age_all(store, 100)
    assert store.get("memo", memo.key)
    collect(store, SMALL)
    assert store.get("ranges", ranges.key)
    assert store.get("ranges", other.key) is None


def test_a_blob_that_is_wanted_again_is_young_again(store: Store) -> None:
    age(store, put(store, 1), 100)
    data = (1).to_bytes(4, "big") * (BLOB_BYTES // 4)
    blob = store.put_bytes("data", data)
    collect(store, SMALL)
    assert store.read(blob.sha256) == data


def test_a_dry_run_says_what_goes_and_removes_nothing(store: Store) -> None:
    age(store, put(store, 1), 100)
    said = collect(store, SMALL, dry_run=True)
    assert (said.dry_run, said.records, said.blobs, blobs(store)) == (True, 1, 1, 1)
    done = collect(store, SMALL)
    assert (done.after_bytes, done.records, blobs(store)) == (said.after_bytes, 1, 0)


def test_only_one_collection_runs_at_a_time(store: Store) -> None:
    with (store.top / "lease" / "collect").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another collection is at work"):
            collect(store, Limits(high_bytes=0, low_bytes=0, patience_s=0.05))


def test_old_quarantine_and_leases_go_and_new_ones_stay(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    quarantined = store.top / "quarantine" / "bad"
    quarantined.write_bytes(b"x")
    lease = store.top / "lease" / f"engine.{digest('t', 1)}"
    lease.touch()
    assert collect(store, SMALL).quarantined == 0
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 8 * 24 * 3600)
    found = collect(store, SMALL)
    assert (found.quarantined, found.temporaries) == (1, 1)
    assert not quarantined.exists()
    assert not lease.exists()


def test_records_of_a_later_version_stop_the_collection(store: Store) -> None:
    record = put(store, 1)
    path = store.top / "ac" / record.kind / record.key[:2] / record.key
    data = path.read_bytes().replace(b"record.v1+json", b"record.v2+json")
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(StoreError, match="a later version of trtbuild wrote"):
        collect(store, SMALL)


def test_pins_have_names_move_and_go(store: Store) -> None:
    first = put_engine(store, engine_key("sm_89", 3), b"first")
    second = put_engine(store, engine_key("sm_120", 3), b"second")
    assert pin(store, first, "") == f"pins/{first.blobs[0].sha256[:12]}"
    assert pin(store, first, "release/digits") == "release/digits"
    pin(store, second, "release/digits")
    assert pins(store)["release/digits"].sha256 == second.blobs[0].sha256
    assert unpin(store, "release/digits") == ("release/digits",)
    assert unpin(store, first.blobs[0].sha256[:8]) == (f"pins/{first.blobs[0].sha256[:12]}",)
    assert pins(store) == {}
    with pytest.raises(UsageError, match="is no pin"):
        unpin(store, "release/digits")
    for name in ("../x", "a/b/c", "/", ".hidden", "a/..", "x\0y"):
        with pytest.raises(UsageError, match="expected NAME"):
            pin(store, first, name)


def test_a_pin_that_cannot_be_read_stops_the_collection(store: Store) -> None:
    age(store, put(store, 1), 100)
    (store.top / "refs" / "pins").mkdir()
    (store.top / "refs" / "pins" / "x").write_text("{}")
    with pytest.raises(StoreError, match="not a pin that this version can read"):
        collect(store, SMALL)
    assert blobs(store) == 1


def test_a_pin_whose_engine_is_lost_is_named(store: Store) -> None:
    engine = put_engine(store, engine_key("sm_89", 3), b"plan")
    pin(store, engine, "release")
    store.path(engine.blobs[0].sha256).unlink()
    assert collect(store, SMALL).broken_pins == ("pins/release",)


def full(store: Store) -> tuple[Record, Record]:
    """Put two engines with statements and marks, a checkpoint, and a file in quarantine."""
    records = []
    for level in (3, 4):
        engine = put_engine(store, engine_key("sm_89", level), b"engine %d" % level)
        put_statement(store, engine.blobs[0].sha256, b"s" * 200_000)
        (store.top / "built").mkdir(mode=0o700, exist_ok=True)
        (store.top / "built" / engine.blobs[0].sha256).touch()
        records.append(engine)
    checkpoint(store, "ranges", "a" * 64).save(b"c" * 50_000)
    (store.top / "quarantine" / "bad").write_bytes(b"q" * 30_000)
    return records[0], records[1]


def beside(store: Store) -> dict[str, int]:
    """Return how many entries lie in each of the other folders."""
    places = ("att", "built", "checkpoint", "quarantine")
    return {place: len(list((store.top / place).glob("*"))) for place in places}


def test_what_belongs_to_an_engine_goes_with_it_and_is_counted(store: Store) -> None:
    kept, gone = full(store)
    pin(store, kept, "release")
    nothing = Limits(high_bytes=0, low_bytes=0, keep_s=0, grace_s=0)
    would = collect(store, nothing, dry_run=True)
    assert beside(store) == {"att": 2, "built": 2, "checkpoint": 1, "quarantine": 1}
    found = collect(store, nothing)
    assert beside(store) == {"att": 1, "built": 1, "checkpoint": 0, "quarantine": 0}
    assert (store.top / "att" / kept.blobs[0].sha256).exists()
    assert not (store.top / "att" / gone.blobs[0].sha256).exists()
    assert (found.quarantined, found.beside) == (would.quarantined, would.beside) == (1, 3)
    assert found.before_bytes - found.after_bytes > 200_000 + 50_000 + 30_000
    assert found.after_bytes == collect(store, nothing).before_bytes == would.after_bytes


def test_statements_of_engines_that_nobody_names_go_below_the_limit_too(store: Store) -> None:
    kept, gone = full(store)
    (store.top / "ac" / "engine" / gone.key[:2] / gone.key).unlink()
    (store.top / "ac" / "plan" / gone.blobs[0].sha256[:2] / gone.blobs[0].sha256).unlink()
    roomy = Limits(high_bytes=1 << 40, low_bytes=1 << 40, keep_s=0, grace_s=0)
    collect(store, roomy)
    assert beside(store) == {"att": 1, "built": 1, "checkpoint": 1, "quarantine": 1}
    assert store.get("engine", kept.key)


def test_what_is_a_day_old_goes_from_quarantine_before_any_result_does(store: Store) -> None:
    engine, _ = full(store)
    size = collect(store, Limits(high_bytes=1 << 40, low_bytes=1 << 40)).before_bytes
    within = Limits(high_bytes=size - 1, low_bytes=size - 1, keep_s=0, grace_s=0)
    found = collect(store, within)
    assert (found.records, found.quarantined, found.beside) == (0, 1, 1)
    assert store.get("engine", engine.key)


def test_statements_that_came_of_late_wait_for_their_engine(store: Store) -> None:
    put_statement(store, "1" * 64, b"pulled before its engine")
    collect(store, SMALL)
    assert beside(store)["att"] == 1


def test_a_store_without_the_other_folders_is_collected(store: Store) -> None:
    put(store, 1)
    for place in ("att", "built", "checkpoint", "quarantine"):
        if (store.top / place).exists():
            (store.top / place).rmdir()
    assert collect(store, Limits(high_bytes=0, low_bytes=0, keep_s=0, grace_s=0)).records == 1


def test_an_engine_and_what_finds_it_go_together_though_half_would_do(store: Store) -> None:
    put_engine(store, engine_key("sm_89", 3), b"engine")
    age_all(store, 9)
    size = collect(store, SMALL, dry_run=True).before_bytes
    found = collect(store, limits(size - 1, size - 1))
    assert found.records == 2
    assert audit(store, repair=False, say=lambda _: None).faults == ()


def test_statements_stay_if_their_engine_came_back_since_they_were_looked_at(
    store: Store,
) -> None:
    engine, _ = full(store)
    about = [each for each in remains(store) if each.subject == engine.blobs[0].sha256]
    assert [remove(store, each) for each in about] == [False, False]
    assert beside(store)["att"] == 2
