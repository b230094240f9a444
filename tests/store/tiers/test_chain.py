"""What tiers are asked, what of it is counted and said, and what becomes of lost blobs."""

from __future__ import annotations

import os
import secrets
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.store.tiers.liar import lying
from trtbuild.canonical import digest
from trtbuild.errors import StoreError, UsageError
from trtbuild.runtime.load import load
from trtbuild.store import Store, counters, make_record
from trtbuild.store.lease import get_or_make
from trtbuild.store.record import encode_record
from trtbuild.store.tiered import TieredStore
from trtbuild.store.tiers.address import read_address
from trtbuild.store.tiers.connect import connect
from trtbuild.store.tiers.names import blob_name, record_name
from trtbuild.store.tiers.tier import PART_BYTES, Upload, read_small

if TYPE_CHECKING:
    from pathlib import Path

    from tests.store.tiers.servers import Server
    from trtbuild.store import Record

KEY = digest("test", "key")


def host(folder: Path, uri: str, options: str = "") -> TieredStore:
    opened = Store.open(f"{folder},{uri}{options}")
    assert isinstance(opened, TieredStore)
    return opened


def record_of(store: Store, size_bytes: int = 1000) -> Record:
    blob = store.put_bytes("engine", os.urandom(size_bytes))
    return make_record("engine", KEY, {}, {}, (blob,))


def counted(store: TieredStore) -> dict[tuple[str, str], int]:
    """Return what was counted: here or there, and how it ended."""
    counters.flush(store)
    return {
        ("here" if tally.tier == "local" else "there", tally.outcome): tally.count
        for tally in counters.totals(store)
        if tally.kind == "engine"
    }


def test_a_cold_stage_is_one_miss_and_a_hit_is_counted_where_it_was(
    uri: str, tmp_path: Path
) -> None:
    first = host(tmp_path / "first", uri, "&write=yes")
    get_or_make(first, "engine", KEY, lambda: record_of(first))
    assert counted(first) == {("there", "miss"): 1, ("here", "miss"): 1}
    second = host(tmp_path / "second", uri, "&write=yes")
    get_or_make(second, "engine", KEY, pytest.fail)
    assert counted(second) == {("there", "hit"): 1}
    get_or_make(second, "engine", KEY, pytest.fail)
    assert counted(second) == {("there", "hit"): 1, ("here", "hit"): 1}


def test_who_waits_for_another_host_counts_one_miss_and_one_hit(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    uri = f"file://{tmp_path / 'share'}?write=yes"
    first, second = host(tmp_path / "first", uri), host(tmp_path / "second", uri)

    def slowly() -> Record:
        time.sleep(4)
        return record_of(first)

    builder = threading.Thread(target=get_or_make, args=(first, "engine", KEY, slowly))
    builder.start()
    time.sleep(0.5)
    assert get_or_make(second, "engine", KEY, pytest.fail)[1]
    builder.join()
    assert counted(second) == {("there", "miss"): 1, ("here", "hit"): 1}


def test_a_cold_stage_asks_once_and_once_more_under_its_lease(
    moto: Server, tmp_path: Path
) -> None:
    with lying(moto.port) as proxy:
        place = f"t{secrets.token_hex(6)}?endpoint=http://127.0.0.1:{proxy.server_address[1]}"
        store = host(tmp_path / "store", f"s3://engines/{place}", "&region=us-east-1&write=yes")
        get_or_make(store, "engine", KEY, lambda: record_of(store))
        asked = [method for method, path, _ in proxy.seen if "/v1/ac/" in path]
        leased = [method for method, path, _ in proxy.seen if "/v1/lease/" in path]
    assert asked == ["GET", "GET", "PUT"]
    assert len(leased) <= 4


@pytest.mark.parametrize("server", ["moto", "registry"])
def test_a_hit_is_a_record_and_its_bytes_with_the_list_of_statements_beside_them(
    request: pytest.FixtureRequest, server: str, tmp_path: Path
) -> None:
    with lying(request.getfixturevalue(server).port) as proxy:
        port, place = proxy.server_address[1], f"t{secrets.token_hex(6)}"
        uri = f"s3://engines/{place}?endpoint=http://127.0.0.1:{port}&region=us-east-1"
        uri = f"oci://127.0.0.1:{port}/{place}?" if server == "registry" else uri
        first = host(tmp_path / "first", uri, "&write=yes")
        first.put(record_of(first))
        proxy.seen.clear()
        assert host(tmp_path / "second", uri).get("engine", KEY) is not None
        assert [method for method, _, _ in proxy.seen] == ["GET"] * 3


def test_a_record_of_any_size_is_put_in_one_request_which_has_the_condition(
    moto: Server,
) -> None:
    """The servers here look for the name and store large bodies in two steps."""
    with lying(moto.port) as proxy:
        place = f"t{secrets.token_hex(6)}?endpoint=http://127.0.0.1:{proxy.server_address[1]}"
        tier = connect(read_address(f"s3://engines/{place}&region=us-east-1"))
        name = record_name("engine", KEY)
        assert tier.put_new(Upload(name=name, data=bytes(PART_BYTES + 1)))
        assert [method for method, _, _ in proxy.seen] == ["PUT"]
        assert not tier.put_new(Upload(name=name, data=bytes(PART_BYTES + 2)))


def lose_blob(tier_uri: str, record: Record, uri: str) -> None:
    """Leave a record in the tier whose blob is not there."""
    tier = connect(read_address(tier_uri))
    tier.put_new(Upload(name=record_name("engine", KEY), data=encode_record(record)))
    assert tier.size(blob_name(record.blobs[0].sha256)) is None, uri


def test_a_record_whose_blob_is_lost_there_is_replaced_by_who_makes_it_anew(
    uri: str, tmp_path: Path
) -> None:
    lose_blob(uri, record_of(Store.open(str(tmp_path / "lost"))), uri)
    first = host(tmp_path / "first", uri, "&write=yes")
    made, appeared = get_or_make(first, "engine", KEY, lambda: record_of(first))
    assert not appeared
    second = host(tmp_path / "second", uri, "&write=yes")
    assert get_or_make(second, "engine", KEY, pytest.fail) == (made, True)


def test_an_object_that_changed_is_not_replaced(uri: str) -> None:
    tier = connect(read_address(uri))
    name = record_name("engine", KEY)
    tier.put_new(Upload(name=name, data=b"first"))
    assert not tier.replace(Upload(name=name, data=b"late"), b"other")
    assert read_small(tier, name, 100) == b"first"
    assert tier.replace(Upload(name=name, data=b"second"), b"first")
    assert read_small(tier, name, 100) == b"second"


def test_what_goes_and_comes_is_told_with_its_size(uri: str, tmp_path: Path) -> None:
    said: list[str] = []
    store = host(tmp_path / "first", uri, "&write=yes").settled(said.append)
    store.put(record_of(store, 10_000_000))
    assert said[-1].endswith("10.0 MB of 10.0 MB")
    assert said[0].startswith("push engine ")
    assert len(said) >= 2
    said.clear()
    host(tmp_path / "second", uri).settled(said.append).get("engine", KEY)
    assert said[0].startswith("pull engine ")
    assert said[-1].endswith("10.0 MB of 10.0 MB")


def test_a_wrong_name_is_not_counted_as_an_error_of_the_store(tmp_path: Path) -> None:
    here = Store.open(str(tmp_path / "store"))
    with pytest.raises(UsageError):
        load("no-such-engine", str(tmp_path / "store"))
    assert not counters.totals(here)
    with pytest.raises(StoreError):
        load("ab" * 32, f"{tmp_path / 'store'},oci://127.0.0.1:9/engines")
    tallies = counters.totals(Store.open(str(tmp_path / "store")))
    assert [each.outcome for each in tallies if each.kind == "load"] == ["error"]
