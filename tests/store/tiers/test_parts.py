"""Large blobs travel in parts: after a kill, with what is missing; and come back verified."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.store.tiers.liar import lying
from trtbuild.canonical import digest
from trtbuild.store import Store, make_record
from trtbuild.store.temporary import new_name
from trtbuild.store.tiers import parts
from trtbuild.store.tiers.address import read_address
from trtbuild.store.tiers.connect import connect
from trtbuild.store.tiers.names import blob_name, parts_name
from trtbuild.store.tiers.parts import fetch_index
from trtbuild.store.tiers.tier import TierError, Upload
from trtbuild.store.tiers.transfer import pull, push

if TYPE_CHECKING:
    from trtbuild.store import Record
    from trtbuild.store.tiers.tier import Tier

ROOT = Path(__file__).parents[3]
KEY = digest("test", "key")
PART = 1 << 20
SIZE = 12 * PART + 12_345
PUSH = (
    "import sys\n"
    "from trtbuild.store import Store\n"
    "from trtbuild.store.tiers import parts\n"
    "from trtbuild.store.tiers.address import read_address\n"
    "from trtbuild.store.tiers.connect import connect\n"
    "from trtbuild.store.tiers.transfer import push\n"
    "parts.PART_BYTES = 1 << 20\n"
    "store = Store.open(sys.argv[1])\n"
    "push(connect(read_address(sys.argv[2])), store, store.get('network', sys.argv[3]))\n"
)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", PART)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store.open(str(tmp_path / "store"))
    blob = opened.put_bytes("network", os.urandom(SIZE))
    opened.put(make_record("network", KEY, {}, {}, (blob,)))
    return opened


@pytest.fixture
def record(store: Store) -> Record:
    return store.get("network", KEY) or pytest.fail("it was put")


def test_a_large_blob_goes_in_parts_and_comes_back(
    tier: Tier, store: Store, record: Record, tmp_path: Path
) -> None:
    told: list[int] = []
    sent = push(tier, store, record, told.append)
    assert (sum(told), len(told), sent.objects) == (SIZE, 13, 2)
    other = Store.open(str(tmp_path / "other"))
    told.clear()
    assert pull(tier, other, "network", KEY, told.append)
    assert sum(told) == SIZE
    assert len(told) >= 13
    assert other.read(record.blobs[0].sha256) == store.read(record.blobs[0].sha256)
    assert push(tier, store, record).objects == 0


def test_a_blob_that_is_there_whole_is_read_and_not_sent(
    tier: Tier, store: Store, record: Record, tmp_path: Path
) -> None:
    blob = record.blobs[0]
    tier.put_new(Upload(name=blob_name(blob.sha256), data=store.read(blob.sha256)))
    assert push(tier, store, record).objects == 1, "the record alone"
    assert pull(tier, Store.open(str(tmp_path / "other")), "network", KEY)


@pytest.mark.parametrize("server", ["moto", "registry"])
def test_a_push_that_was_killed_goes_on_with_the_parts_that_are_missing(
    request: pytest.FixtureRequest, server: str, store: Store, record: Record, tmp_path: Path
) -> None:
    with lying(request.getfixturevalue(server).port) as proxy:
        port, place = proxy.server_address[1], f"t{secrets.token_hex(6)}"
        uri = f"s3://engines/{place}?endpoint=http://127.0.0.1:{port}&region=us-east-1"
        uri = f"oci://127.0.0.1:{port}/{place}" if server == "registry" else uri
        command = [sys.executable, "-c", PUSH, str(store.root), uri, KEY]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
        while sum(count == PART for _, _, count in proxy.seen) < 6:
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.5)  # what was on its way arrives
        arrived = sum(count == PART for _, _, count in proxy.seen)
        assert arrived < 12, "it was not killed in the middle"
        tier = connect(read_address(uri))
        assert fetch_index(tier, record.blobs[0]) is None, "visible before it is whole"
        proxy.seen.clear()
        push(tier, store, record)
        again = sum(count for _, _, count in proxy.seen)
        assert again < SIZE - (arrived - parts.AT_ONCE) * PART + PART / 4
        assert pull(tier, Store.open(str(tmp_path / "other")), "network", KEY)


@pytest.mark.parametrize("uri", ["folder"], indirect=True)
def test_a_part_that_is_lost_there_is_a_miss_and_a_push_replaces_it(
    uri: str, tier: Tier, store: Store, record: Record, tmp_path: Path
) -> None:
    push(tier, store, record)
    index = fetch_index(tier, record.blobs[0])
    assert index is not None
    share = Path(uri.removeprefix("file://").rstrip("?"))
    (share / blob_name(index.parts[3])).unlink()
    other = Store.open(str(tmp_path / "other"))
    assert not pull(tier, other, "network", KEY)
    assert any("missing there" in each.reason for each in other.incidents)
    told = push(tier, store, record)
    assert told.bytes == PART
    assert pull(tier, other, "network", KEY)


@pytest.mark.parametrize("uri", ["folder"], indirect=True)
def test_a_damaged_part_and_a_wrong_index_are_named_and_nothing_is_stored(
    uri: str, tier: Tier, store: Store, record: Record, tmp_path: Path
) -> None:
    push(tier, store, record)
    blob = record.blobs[0]
    index = fetch_index(tier, blob)
    assert index is not None
    share = Path(uri.removeprefix("file://").rstrip("?"))
    part = share / blob_name(index.parts[3])
    part.chmod(0o644)
    part.write_bytes(bytes(PART))
    other = Store.open(str(tmp_path / "other"))
    with pytest.raises(TierError, match=f"{index.parts[3]}: not to be used: .*delete it there"):
        pull(tier, other, "network", KEY)
    assert not other.path(blob.sha256).exists()
    path = share / parts_name(blob.sha256)
    path.chmod(0o644)
    for wrong in (b"{}", path.read_bytes().replace(b'"bytes":', b'"bytes":1')):
        path.write_bytes(wrong)
        with pytest.raises(TierError, match="not to be used"):
            pull(tier, other, "network", KEY)


def test_what_a_killed_push_left_on_a_share_is_removed_by_the_next(
    store: Store, record: Record, tmp_path: Path
) -> None:
    drafts = tmp_path / "share" / "v1" / "tmp"
    drafts.mkdir(parents=True)
    dead = subprocess.Popen(["true"])
    dead.wait()
    host, boot, _, rest = new_name().split(".")
    left = drafts / f"{host}.{boot}.{dead.pid}.{rest}"
    left.write_bytes(b"half of it")
    ours = drafts / new_name()
    ours.write_bytes(b"being written")
    push(connect(read_address(str(tmp_path / "share"))), store, record)
    assert list(drafts.iterdir()) == [ours]
