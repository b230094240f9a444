"""Two machines with a tier between them: what one has made, the other reads."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import trtbuild.store.tiers.lease as leases
from tests.store.engines import engine_key, put_engine
from tests.store.tiers import hosts
from trtbuild.canonical import digest
from trtbuild.errors import StoreError, UsageError
from trtbuild.store import Store, find_engine, find_record, make_record
from trtbuild.store.lease import get_or_make
from trtbuild.store.record import encode_record
from trtbuild.store.resolve import Plan
from trtbuild.store.statements import put_statement, statements
from trtbuild.store.tiered import TieredStore
from trtbuild.store.tiers.address import read_address
from trtbuild.store.tiers.connect import connect
from trtbuild.store.tiers.names import blob_name, lease_name, record_name
from trtbuild.store.tiers.remote import engines_of
from trtbuild.store.tiers.tier import Upload
from trtbuild.store.tiers.transfer import pull, push

if TYPE_CHECKING:
    from tests.store.tiers.servers import Server
    from trtbuild.store import Record
    from trtbuild.store.tiers.chain import Counts

ROOT = Path(__file__).parents[3]
KEY = digest("test", "key")


def host(folder: Path, uri: str, options: str = "") -> TieredStore:
    opened = Store.open(f"{folder},{uri}{options}")
    assert isinstance(opened, TieredStore)
    return opened


def counts(store: TieredStore) -> Counts:
    return store.chain.links[0].counts


def record_of(store: Store, data: bytes, key: str = KEY) -> Record:
    return make_record("engine", key, {}, {}, (store.put_bytes("engine", data),))


def test_what_one_host_made_another_reads_with_its_statements(uri: str, tmp_path: Path) -> None:
    first = host(tmp_path / "first", uri, "&write=yes")
    made = record_of(first, b"engine")
    put_statement(first, made.blobs[0].sha256, b"signed")
    first.put(made)
    second = host(tmp_path / "second", uri)
    found = second.get("engine", KEY)
    assert found == made
    assert second.read(made.blobs[0].sha256) == b"engine"
    assert statements(second, made.blobs[0].sha256) == (b"signed",)
    assert second.here.get("engine", KEY) == made
    assert (counts(second).hits, counts(second).misses, counts(second).errors) == (1, 0, 0)
    assert second.get("engine", digest("test", "other")) is None
    assert (counts(second).hits, counts(second).misses, counts(second).errors) == (1, 1, 0)


def test_a_statement_that_came_later_is_shared(uri: str, tmp_path: Path) -> None:
    first = host(tmp_path / "first", uri, "&write=yes")
    made = first.put(record_of(first, b"engine"))
    put_statement(first, made.blobs[0].sha256, b"promoted")
    first.share(made)
    second = host(tmp_path / "second", uri)
    assert second.get("engine", KEY) == made
    assert statements(second, made.blobs[0].sha256) == (b"promoted",)


def test_an_engine_is_found_by_its_digest_where_only_the_tier_has_it(
    uri: str, tmp_path: Path
) -> None:
    first = host(tmp_path / "first", uri, "&write=yes")
    made = put_engine(first, engine_key("sm_89", 3), b"engine")
    second = host(tmp_path / "second", uri)
    assert find_engine(second, made.blobs[0].sha256) == made
    assert second.read(made.blobs[0].sha256) == b"engine"


def test_an_engine_that_is_here_is_found_without_asking_a_tier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decision 10: production goes on with the verified copy that it has."""
    monkeypatch.setenv("CI", "true")  # so that any question would fail
    store = host(tmp_path / "store", "oci://127.0.0.1:9/engines")
    made = put_engine(store, engine_key("sm_89", 3), b"engine")
    for name in (made.key, made.blobs[0].sha256):
        for text in (name, name[:12]):
            assert find_engine(store, text) == made
            assert find_record(store, text) == made
    assert counts(store).errors == 0


def test_without_write_nothing_goes_to_a_tier(uri: str, tmp_path: Path) -> None:
    first = host(tmp_path / "first", uri)
    first.put(record_of(first, b"engine"))
    assert connect(read_address(uri)).size(record_name("engine", KEY)) is None


def test_what_names_local_paths_stays_on_its_machine(uri: str, tmp_path: Path) -> None:
    first = host(tmp_path / "first", uri, "&write=yes")
    first.put(make_record("memo", KEY, {}, {"path": "/srv/model.onnx"}))
    assert connect(read_address(uri)).size(record_name("memo", KEY)) is None
    assert host(tmp_path / "second", uri).get("memo", KEY) is None


def test_of_two_hosts_that_made_one_key_the_first_writers_bytes_are_everybodys(
    uri: str, tmp_path: Path
) -> None:
    first = host(tmp_path / "first", uri, "&write=yes")
    second = host(tmp_path / "second", uri, "&write=yes")
    slept = record_of(second, b"the bytes of who slept")
    made = first.put(record_of(first, b"the first bytes"))
    assert second.put(slept) == made
    assert second.here.get("engine", KEY) == made
    assert second.read(made.blobs[0].sha256) == b"the first bytes"


def test_a_record_of_another_version_stays_there_and_this_machine_keeps_its_own(
    uri: str, tmp_path: Path
) -> None:
    first = host(tmp_path / "first", uri, "&write=yes")
    first.put(record_of(first, b"engine"))
    second = host(tmp_path / "second", uri, "&write=yes")
    plan = make_record("engine", KEY, {}, Plan(engine_key=KEY))
    found, appeared = get_or_make(second, "engine", KEY, lambda: plan, Plan)
    assert (found.read(Plan), appeared) == (Plan(engine_key=KEY), False)
    assert any("keeps its own" in each.reason for each in second.incidents)
    assert get_or_make(second, "engine", KEY, pytest.fail, Plan)[0].read(Plan) == found.read(
        Plan
    )
    third = host(tmp_path / "third", uri).get("engine", KEY)
    assert third is not None
    assert [blob.name for blob in third.blobs] == ["engine"]


def test_a_push_that_was_interrupted_goes_on_with_what_is_missing(
    uri: str, tmp_path: Path
) -> None:
    store = Store.open(str(tmp_path / "store"))
    blobs = tuple(store.put_bytes(f"part{n}", b"%d" % n * 1000) for n in range(4))
    record = store.put(make_record("network", KEY, {}, {}, blobs))
    tier = connect(read_address(uri))
    sent: list[int] = []

    def stop(count: int) -> None:
        sent.append(count)
        if len(sent) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push(tier, store, record, stop)
    other = Store.open(str(tmp_path / "other"))
    assert not pull(tier, other, "network", KEY), "a record was visible before its blobs"
    again = push(tier, store, record)
    assert again.present >= 2
    assert again.objects <= 3
    assert pull(tier, other, "network", KEY)
    assert other.get("network", KEY) == record
    assert push(tier, store, record).objects == 0


@pytest.mark.parametrize("uri", ["folder", "moto", "localbucket"], indirect=True)
def test_a_record_whose_blob_is_lost_there_is_a_miss_and_said(uri: str, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    record = record_of(store, b"engine")
    store.put(record)
    tier = connect(read_address(uri))
    data = encode_record(record)
    tier.put_new(Upload(name=record_name("engine", KEY), data=data))
    second = host(tmp_path / "second", uri)
    assert second.get("engine", KEY) is None
    assert any("missing there" in incident.reason for incident in second.incidents)


@pytest.mark.parametrize("uri", ["folder"], indirect=True)
def test_a_changed_blob_is_an_error_and_nothing_of_it_is_stored(
    uri: str, tmp_path: Path
) -> None:
    first = host(tmp_path / "first", uri, "&write=yes")
    made = first.put(record_of(first, b"engine"))
    sha256 = made.blobs[0].sha256
    path = Path(uri.removeprefix("file://").rstrip("?")) / blob_name(sha256)
    path.chmod(0o644)
    path.write_bytes(b"ENGINE")
    second = host(tmp_path / "second", uri)
    assert second.get("engine", KEY) is None
    assert (counts(second).misses, counts(second).errors) == (0, 1)
    assert not second.path(sha256).exists()
    assert any("digest" in incident.reason for incident in second.incidents)
    strict = host(tmp_path / "third", uri, "&on_error=fail")
    with pytest.raises(StoreError, match="not to be used"):
        strict.get("engine", KEY)


@pytest.mark.parametrize("uri", ["folder"], indirect=True)
def test_files_with_other_names_in_a_tier_are_passed_over(uri: str, tmp_path: Path) -> None:
    first = host(tmp_path / "first", uri, "&write=yes")
    made = first.put(record_of(first, b"engine"))
    share = Path(uri.removeprefix("file://").rstrip("?"))
    sha256 = made.blobs[0].sha256
    for name in (f"v1/att/{sha256}/.nfs01", f"v1/ac/engine/{KEY[:2]}/notes.txt"):
        (share / name).parent.mkdir(parents=True, exist_ok=True)
        (share / name).write_bytes(b"x")
    assert host(tmp_path / "second", uri).get("engine", KEY) == made
    assert engines_of(connect(read_address(uri))) == [made]


@pytest.mark.parametrize("uri", ["folder"], indirect=True)
def test_a_nearer_tier_that_is_written_gets_what_a_farther_one_had(
    uri: str, moto: Server, tmp_path: Path
) -> None:
    far = moto.uri(f"t{secrets.token_hex(6)}")
    first = host(tmp_path / "first", far, "&write=yes")
    made = first.put(record_of(first, b"engine"))
    second = host(tmp_path / "second", f"{uri}write=yes,{far}")
    assert second.get("engine", KEY) == made
    assert host(tmp_path / "third", uri).get("engine", KEY) == made


# Errors are not misses


def test_in_ci_and_where_it_writes_a_tier_that_is_gone_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = "s3://engines/x?endpoint=http://127.0.0.1:9"
    reader = host(tmp_path / "reader", gone)
    assert reader.get("engine", KEY) is None
    assert (counts(reader).misses, counts(reader).errors) == (0, 1)
    assert any("error, gone on" in incident.reason for incident in reader.incidents)
    writer = host(tmp_path / "writer", gone, "&write=yes")
    with pytest.raises(StoreError, match="Check the network"):
        writer.put(record_of(writer, b"engine"))
    assert writer.here.get("engine", KEY) is not None, "what was built is lost"
    monkeypatch.setenv("CI", "true")
    with pytest.raises(StoreError, match="Check the network"):
        host(tmp_path / "ci", gone).get("engine", KEY)


def test_a_tier_that_failed_three_times_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = host(tmp_path / "reader", "oci://127.0.0.1:9/engines")
    for _ in range(5):
        assert reader.get("engine", KEY) is None
    assert counts(reader).errors == 5
    assert [incident.path for incident in reader.incidents] == ["oci://127.0.0.1:9/engines"]
    monkeypatch.setenv("CI", "true")
    with pytest.raises(StoreError, match="not asked"):
        reader.get("engine", KEY)


def test_a_name_that_a_silent_tier_may_know_is_not_called_wrong(tmp_path: Path) -> None:
    reader = host(tmp_path / "reader", "oci://127.0.0.1:9/engines")
    (tmp_path / "plan").write_bytes(b"engine")
    for name in (KEY, str(tmp_path / "plan")):
        for find in (find_engine, find_record):
            with pytest.raises(StoreError, match=r"not answer: .*127\.0\.0\.1:9/.* refused"):
                find(reader, name)
    with pytest.raises(UsageError, match="names nothing"):
        find_engine(reader, "no/such/file")


def test_a_bucket_that_does_not_exist_is_no_miss(moto: Server, tmp_path: Path) -> None:
    wrong = moto.uri("x").replace("//engines/", "//nobody/")
    reader = host(tmp_path / "reader", wrong)
    assert reader.get("engine", KEY) is None
    assert (counts(reader).misses, counts(reader).errors) == (0, 1)
    assert any("no such bucket" in incident.reason for incident in reader.incidents)
    tier = connect(read_address(wrong))
    record = reader.put(record_of(reader, b"engine"))
    for ask in (partial(push, tier, reader.here, record), partial(engines_of, tier)):
        with pytest.raises(StoreError, match="no such bucket"):
            ask()


def test_a_share_that_is_not_mounted_is_no_miss(tmp_path: Path) -> None:
    reader = host(tmp_path / "reader", f"file://{tmp_path}/absent")
    assert reader.get("engine", KEY) is None
    assert (counts(reader).misses, counts(reader).errors) == (0, 1)


# Single flight across hosts


def run_hosts(uri: str, folder: Path, hosts: int, *how: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "hosts.py", uri, folder, str(hosts), *how],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("uri", ["folder", "moto"], indirect=True)
@pytest.mark.parametrize("processes", [2, pytest.param(16, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("how", ["live", "kill", "pause"])
def test_hosts_whose_clocks_differ_publish_one_engine_whatever_happens_to_the_builder(
    uri: str, processes: int, how: str, tmp_path: Path
) -> None:
    """C4: three hosts, clocks five minutes apart; who builds lives, dies, or is stopped."""
    answer = run_hosts(f"{uri}&write=yes", tmp_path, 3, how, str(processes), "300")
    assert answer["builds"] == {"live": 1, "kill": 2, "pause": 2}[how]
    assert len(answer["engines"]) == 3 * processes - (how == "kill")
    assert len(set(answer["engines"])) == 1
    assert answer["taken_over_s"] <= hosts.TTL_S + 5
    print(f"{how}: taken over after {answer['taken_over_s']:.2f} s, TTL {hosts.TTL_S} s")  # noqa: T201  the record of the run


@pytest.mark.parametrize("uri", ["folder", "moto"], indirect=True)
def test_a_released_lease_is_free_at_once_and_a_renewed_one_is_kept(uri: str) -> None:
    tier = connect(read_address(uri))
    name = lease_name("engine", KEY)
    turn = leases.take_turn(tier, name, lambda: None, 0.6)
    held = tier.peek(name)
    assert held is not None
    record = make_record("engine", KEY, {}, {})
    asked: list[int] = []

    def appears() -> Record | None:
        asked.append(1)
        return record if len(asked) == 6 else None

    # Longer than its time to live: without renewal, this would take the lease over.
    assert leases.take_turn(tier, name, appears, 0.6).record is record
    turn.release()
    assert leases.take_turn(tier, name, lambda: None, 60.0).record is None


def test_a_registry_has_no_leases_and_is_built_to_all_the_same(
    registry: Server, tmp_path: Path
) -> None:
    uri = f"oci://127.0.0.1:{registry.port}/t{secrets.token_hex(6)}?write=yes"
    store = host(tmp_path / "store", uri)
    made, cached = get_or_make(store, "engine", KEY, lambda: record_of(store, b"engine"))
    assert not cached
    assert host(tmp_path / "second", uri).get("engine", KEY) == made


# Offline


def test_offline_leaves_out_what_needs_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTBUILD_OFFLINE", "1")
    remotes = f"s3://engines/x,oci://localhost/engines,file://{tmp_path}/share"
    opened = host(tmp_path / "store", remotes)
    assert [link.address.scheme for link in opened.chain.links] == ["file"]
