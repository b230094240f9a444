from __future__ import annotations

import errno
import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.store.engines import engine_key, put_engine
from trtbuild.canonical import digest
from trtbuild.errors import TrustError, UsageError
from trtbuild.store import Store, find_engine, find_record, make_record, resolve
from trtbuild.store.audit import audit
from trtbuild.store.collect import Limits, collect
from trtbuild.store.pins import pin
from trtbuild.store.reader import BlobLostError
from trtbuild.store.resolve import Plan
from trtbuild.store.tiers.remote import records_of

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.store import Record


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def test_an_engine_is_found_by_digest_key_prefix_and_path(store: Store, tmp_path: Path) -> None:
    record = put_engine(store, engine_key("sm_89", 3), b"plan for sm_89")
    put_engine(store, engine_key("sm_120", 3), b"plan for sm_120")
    sha256 = hashlib.sha256(b"plan for sm_89").hexdigest()
    copy = tmp_path / "copy.plan"
    copy.write_bytes(b"plan for sm_89")
    names = [sha256, sha256[:6], record.key, record.key[:6], str(copy)]
    assert [find_engine(store, name) for name in names] == [record] * len(names)
    assert [find_record(store, name) for name in names] == [record] * len(names)


def test_two_keys_with_the_same_bytes_are_both_found_by_key(store: Store) -> None:
    first = put_engine(store, engine_key("sm_89", 3), b"the same plan")
    second = put_engine(store, engine_key("sm_89", 4), b"the same plan")
    sha256 = hashlib.sha256(b"the same plan").hexdigest()
    assert find_engine(store, first.key) == first
    assert find_engine(store, second.key) == second
    assert find_engine(store, sha256) == first


def test_what_names_nothing_is_a_usage_error_that_says_what_to_give(
    store: Store, tmp_path: Path
) -> None:
    put_engine(store, engine_key("sm_89", 3), b"plan")
    known = hashlib.sha256(b"plan").hexdigest()
    for text in (
        "abcdef",
        known[:5],
        known.upper(),
        "0" * 64,
        "no/such/file",
        "",
        str(tmp_path),
    ):
        for find in (find_engine, find_record):
            with pytest.raises(UsageError, match="names nothing in the store"):
                find(store, text)
    (tmp_path / "other.plan").write_bytes(b"other")
    with pytest.raises(UsageError, match=r"no engine in the store .* has these bytes"):
        find_engine(store, str(tmp_path / "other.plan"))


def test_an_ambiguous_prefix_is_refused_with_what_it_could_be(store: Store) -> None:
    first, second = "abcdef" + "0" * 58, "abcdef" + "1" * 58
    for key in (first, second):
        store.put(make_record("engine", key, {}, {}))
        store.put(make_record("ranges", key, {}, {}))
    with pytest.raises(UsageError, match=r"names more than one: engine abcdef000000 .*abcdef1"):
        find_engine(store, "abcdef")
    assert find_engine(store, "abcdef0").key == first


def test_bytes_whose_plan_record_names_an_engine_of_others_name_nothing(
    store: Store, tmp_path: Path
) -> None:
    other = put_engine(store, engine_key("sm_89", 3), b"the other plan")
    sha256 = hashlib.sha256(b"the plan").hexdigest()
    (tmp_path / "copy.plan").write_bytes(b"the plan")
    store.put(make_record("plan", sha256, {}, Plan(engine_key=other.key)))
    for name in (sha256, sha256[:6], str(tmp_path / "copy.plan")):
        with pytest.raises(TrustError, match="which is of other bytes") as caught:
            find_engine(store, name)
        assert caught.value.code == "T08"
    assert find_engine(store, other.key) == other


def test_any_record_is_found_by_its_key(store: Store) -> None:
    ranges = store.put(make_record("ranges", digest("ranges", 1), {"batches": 4}, {"amax": 1}))
    assert find_record(store, ranges.key[:8]) == ranges
    with pytest.raises(UsageError):
        find_engine(store, ranges.key)
    store.put(make_record("network", ranges.key, {}, {}))
    with pytest.raises(UsageError, match=r"names more than one: network .*; ranges "):
        find_record(store, ranges.key[:8])


def test_an_engine_whose_bytes_are_lost_is_said_to_be_lost(store: Store) -> None:
    record = put_engine(store, engine_key("sm_89", 3), b"plan")
    sha256 = record.blob("engine").sha256
    store.path(sha256).unlink()
    with pytest.raises(BlobLostError, match=r"lost or were damaged.*cache pull .* or build it"):
        find_engine(store, sha256)


def twins(store: Store) -> tuple[Record, Record]:
    """Put two engines of two keys with the same bytes; the first is the plan record's."""
    first, second = engine_key("sm_89", 3), engine_key("sm_89", 4)
    return put_engine(store, first, b"equal"), put_engine(store, second, b"equal")


def let_go(store: Store, record: Record) -> None:
    (store.top / "ac" / record.kind / record.key[:2] / record.key).unlink()


def test_of_engines_with_equal_bytes_another_is_found_when_the_first_is_gone(
    store: Store,
) -> None:
    first, second = twins(store)
    sha256 = first.blobs[0].sha256
    assert find_engine(store, sha256) == first
    let_go(store, first)
    assert find_engine(store, sha256) == second
    assert find_engine(store, sha256[:9]) == second
    plan = store.get("plan", sha256)
    assert plan
    let_go(store, plan)
    assert find_engine(store, sha256) == second


def test_a_plan_record_without_its_engine_is_a_fault_that_repairing_mends(store: Store) -> None:
    first, second = twins(store)
    sha256 = first.blobs[0].sha256
    let_go(store, first)
    for repair in (False, True):
        found = audit(store, repair=repair, say=lambda _: None)
        assert [(fault.kind, fault.repaired) for fault in found.faults] == [("missing", repair)]
        assert "that it names is lost" in found.faults[0].reason
    plan = store.get("plan", sha256)
    assert plan
    assert plan.read(Plan).engine_key == second.key
    assert audit(store, repair=False, say=lambda _: None).faults == ()


def test_a_plan_record_of_another_engine_is_a_fault(store: Store) -> None:
    other = put_engine(store, engine_key("sm_90", 3), b"other")
    lie = {"engine_key": other.key}
    store.put(make_record("plan", "1" * 64, {"engine_sha256": "1" * 64}, lie))
    (fault,) = audit(store, repair=False, say=lambda _: None).faults
    assert "that it names is another" in fault.reason


@pytest.mark.parametrize("pinned", [0, 1])
def test_a_pinned_engine_is_found_by_its_digest_after_a_collection(
    store: Store, pinned: int
) -> None:
    records = twins(store)
    pin(store, records[pinned], "release")
    collect(store, Limits(high_bytes=0, low_bytes=0, keep_s=0, grace_s=0))
    found = find_engine(store, records[pinned].blobs[0].sha256)
    assert found.blobs == records[pinned].blobs
    assert store.get("engine", records[pinned].key) == records[pinned]
    assert audit(store, repair=False, say=lambda _: None).faults == ()


@pytest.mark.parametrize("gone", [False, True])
def test_an_engine_leaves_with_a_record_that_finds_it(store: Store, gone: bool) -> None:  # noqa: FBT001  a case
    first, second = twins(store)
    if gone:
        let_go(store, first)
    sent = records_of(store, [second.key])
    keys = {record.key for record in sent if record.kind == "engine"}
    (plan,) = [record for record in sent if record.kind == "plan"]
    assert keys == ({second.key} if gone else {first.key, second.key})
    assert plan.read(Plan).engine_key in keys


def test_records_of_every_kind_that_there_is_are_found_by_their_keys(store: Store) -> None:
    kinds = (
        "adjusted",
        "channels",
        "effect",
        "extremes",
        "migrated",
        "policy",
        "trials",
        "new",
    )
    for kind in kinds:
        record = store.put(make_record(kind, digest("kind", kind), {"a": 1}, {}))
        assert find_record(store, record.key[:9]) == record


def test_a_file_that_may_not_be_read_is_no_traceback(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> str:  # root may read every file
        raise PermissionError(errno.EACCES, "Permission denied")

    path = tmp_path / "plan"
    path.write_bytes(b"plan")
    monkeypatch.setattr(resolve, "sha256_file", refuse)
    with pytest.raises(UsageError, match="cannot be read: Permission denied"):
        find_engine(store, str(path))
