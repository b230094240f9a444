from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.store.engines import engine_key, put_engine
from trtbuild.canonical import digest
from trtbuild.errors import StoreError, TrustError, UsageError
from trtbuild.store import Store, find_engine, find_record, make_record
from trtbuild.store.resolve import Plan

if TYPE_CHECKING:
    from pathlib import Path


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
    with pytest.raises(UsageError, match=r"names more than one: ranges .*; network "):
        find_record(store, ranges.key[:8])


def test_an_engine_whose_bytes_are_lost_is_said_to_be_lost(store: Store) -> None:
    record = put_engine(store, engine_key("sm_89", 3), b"plan")
    sha256 = record.blob("engine").sha256
    store.path(sha256).unlink()
    with pytest.raises(StoreError, match=r"lost or were damaged.*Build it again"):
        find_engine(store, sha256)
