"""What every tier can do, against real servers."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from trtbuild.store.record import Blob
from trtbuild.store.tiers.lease import TTL_S, take_turn
from trtbuild.store.tiers.names import blob_name, lease_name, record_name, statement_name
from trtbuild.store.tiers.tier import PART_BYTES, TierError, Upload, read_small

if TYPE_CHECKING:
    from trtbuild.store.tiers.tier import Tier

KEY = hashlib.sha256(b"key").hexdigest()
LEASE = f"v1/lease/engine.{KEY}"


def upload(data: bytes) -> Upload:
    name = blob_name(hashlib.sha256(data).hexdigest())
    return Upload(name=name, data=data)


def test_what_was_put_is_read_back_and_measured(tier: Tier) -> None:
    sent = upload(b"engine")
    assert tier.get(sent.name, 6) is None
    assert tier.size(sent.name) is None
    assert tier.put_new(sent)
    assert read_small(tier, sent.name, 6) == b"engine"
    assert tier.size(sent.name) == 6


def test_a_large_object_comes_back_in_parts(tier: Tier) -> None:
    data = os.urandom(2 * PART_BYTES + 12_345)
    large = upload(data)
    assert tier.put_new(large)
    chunks = tier.get(large.name, len(data))
    assert chunks is not None
    found = hashlib.sha256()
    for chunk in chunks:
        assert len(chunk) <= PART_BYTES
        found.update(chunk)
    assert found.hexdigest() == large.name[-64:]


def test_more_bytes_than_expected_are_refused(tier: Tier) -> None:
    sent = upload(b"engine")
    tier.put_new(sent)
    with pytest.raises(TierError, match="more than the 5 bytes"):
        read_small(tier, sent.name, 5)


def test_a_name_that_is_taken_keeps_its_object(tier: Tier) -> None:
    name = record_name("engine", KEY)
    assert tier.put_new(Upload(name=name, data=b"first"))
    assert not tier.put_new(Upload(name=name, data=b"second"))
    assert read_small(tier, name, 100) == b"first"


@pytest.mark.parametrize("uri", ["folder", "moto", "localbucket"], indirect=True)
def test_of_32_threads_that_put_one_name_one_wins(tier: Tier) -> None:
    name = record_name("engine", KEY)
    gate, won = threading.Barrier(32), []

    def put(number: int) -> None:
        data = f"{number:02d}".encode()
        gate.wait()
        if tier.put_new(Upload(name=name, data=data)):
            won.append(data)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert read_small(tier, name, 2) == won[0]


def test_names_are_listed_by_prefix_and_sorted(tier: Tier) -> None:
    other = hashlib.sha256(b"other").hexdigest()
    wanted = [record_name("engine", key) for key in (KEY, other)]
    for name in (*wanted, record_name("plan", KEY), statement_name(KEY, other)):
        tier.put_new(Upload(name=name, data=b"{}"))
    assert list(tier.names("v1/ac/engine/")) == sorted(wanted)
    assert list(tier.names(wanted[0][:-10])) == [wanted[0]]
    assert list(tier.names(f"v1/att/{KEY}/")) == [statement_name(KEY, other)]
    assert list(tier.names("v1/ac/ranges/")) == []


def test_a_record_keeps_the_blobs_that_it_names(tier: Tier) -> None:
    blob = upload(b"engine")
    tier.put_new(blob)
    link = Blob(name="engine", sha256=blob.name[-64:], bytes=6)
    name = record_name("engine", KEY)
    assert tier.put_new(Upload(name=name, data=b"{}", links=(link,)))
    assert read_small(tier, name, 2) == b"{}"


def test_a_lease_is_replaced_only_by_who_saw_it_last(tier: Tier) -> None:
    if not tier.has_leases:
        with pytest.raises(TierError, match="no leases"):
            tier.peek(LEASE)
        return
    assert tier.peek(LEASE) is None
    assert tier.swap(LEASE, b"first", None)
    assert not tier.swap(LEASE, b"second", None)
    seen = tier.peek(LEASE)
    assert seen is not None
    assert seen.data == b"first"
    assert tier.swap(LEASE, b"third", seen)
    now = tier.peek(LEASE)
    assert now is not None
    assert now.data == b"third"


@pytest.mark.parametrize("uri", ["folder", "moto"], indirect=True)
def test_a_lease_that_changed_since_is_not_replaced(tier: Tier) -> None:
    for turn in range(20):
        before = tier.peek(LEASE)
        assert tier.swap(LEASE, b"%d" % turn, before)
        assert not tier.swap(LEASE, b"late", before)
    now = tier.peek(LEASE)
    assert now is not None
    assert now.data == b"19"


@pytest.mark.parametrize("uri", ["folder", "moto"], indirect=True)
def test_a_released_lease_leaves_nothing_behind(tier: Tier) -> None:
    take_turn(tier, lease_name("engine", KEY), lambda: None).release()
    assert list(tier.names("v1/lease/")) == []


@pytest.mark.parametrize("uri", ["localbucket"], indirect=True)
def test_where_nothing_can_be_deleted_a_lease_ends_all_the_same(tier: Tier) -> None:
    started = time.monotonic()
    for _ in range(3):
        take_turn(tier, lease_name("engine", KEY), lambda: None).release()
    assert time.monotonic() - started < TTL_S / 2
