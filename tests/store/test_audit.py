"""``cache verify``: everything that is wrong is found, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from tests.store.engines import engine_key, put_engine
from trtbuild.canonical import digest
from trtbuild.store import Store, make_record
from trtbuild.store.audit import audit
from trtbuild.store.pins import pin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trtbuild.store import Record


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def quiet(_: str) -> None:
    """Say nothing."""


def engine(store: Store) -> Record:
    return put_engine(store, engine_key("sm_89", 3), b"plan")


def overwrite(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def record_path(store: Store, record: Record) -> Path:
    return store.top / "ac" / record.kind / record.key[:2] / record.key


def flip_blob(store: Store, record: Record) -> None:
    overwrite(store.path(record.blobs[0].sha256), b"PLAN")


def flip_record(store: Store, record: Record) -> None:
    data = bytearray(record_path(store, record).read_bytes())
    data[99] ^= 1
    overwrite(record_path(store, record), bytes(data))


def lose_blob(store: Store, record: Record) -> None:
    store.path(record.blobs[0].sha256).unlink()


def rename_record(store: Store, record: Record) -> None:
    overwrite(
        store.top / "ac" / "engine" / "00" / ("0" * 64), record_path(store, record).read_bytes()
    )


def stray_file(store: Store, _: Record) -> None:
    overwrite(store.top / "cas" / "sha256" / "ab" / "notes.txt", b"hello")


def link(store: Store, record: Record) -> None:
    path = store.path(record.blobs[0].sha256)
    path.rename(store.root / "elsewhere")
    path.symlink_to(store.root / "elsewhere")


def linked_folder(store: Store, _: Record) -> None:
    (store.top / "cas" / "sha256" / "zz").symlink_to(store.top / "tmp")


def open_to_others(store: Store, record: Record) -> None:
    store.path(record.blobs[0].sha256).chmod(0o666)


def false_statement(store: Store, record: Record) -> None:
    overwrite(store.top / "att" / record.blobs[0].sha256 / ("1" * 64), b"{}")


def test_a_sound_store_is_sound(store: Store) -> None:
    pin(store, engine(store), "release")
    store.put_bytes("x", b"nobody names it")
    found = audit(store, repair=False, say=quiet)
    assert found.sound
    assert (found.records, found.blobs, found.unnamed_blobs, found.newer) == (2, 2, 1, 0)


@pytest.mark.parametrize(
    ("damage", "kinds"),
    [
        # The record that finds an engine by its digest is a fault where the engine is one.
        (flip_blob, ["corrupt", "missing", "missing"]),
        (flip_record, ["corrupt", "missing"]),
        (lose_blob, ["missing", "missing"]),
        (rename_record, ["corrupt"]),
        (stray_file, ["foreign"]),
        (link, ["corrupt", "missing", "missing"]),
        (linked_folder, ["foreign"]),
        (open_to_others, ["corrupt", "missing", "missing"]),
        (false_statement, ["corrupt"]),
    ],
)
def test_what_is_wrong_is_found_and_set_aside(
    damage: Callable[[Store, Record], None], kinds: list[str], store: Store
) -> None:
    other = put_engine(store, engine_key("sm_120", 3), b"other")
    damage(store, engine(store))
    found = audit(store, repair=False, say=quiet)
    assert [fault.kind for fault in found.faults] == kinds
    assert not found.sound
    repaired = audit(store, repair=True, say=quiet)
    assert repaired.sound
    assert len(repaired.faults) == len(kinds)
    assert audit(store, repair=False, say=quiet).faults == ()
    assert store.get("engine", other.key) == other
    assert store.get("engine", engine(store).key) is not None, "it can be made again"


def test_records_of_a_later_version_are_counted_and_left_alone(store: Store) -> None:
    made = engine(store)
    path = record_path(store, made)
    envelope = json.loads(path.read_bytes())
    envelope["payloadType"] = envelope["payloadType"].replace("v1", "v2")
    kind, payload = envelope["payloadType"].encode(), base64.b64decode(envelope["payload"])
    encoded = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    envelope["payloadSha256"] = hashlib.sha256(encoded).hexdigest()
    overwrite(path, json.dumps(envelope).encode())
    found = audit(store, repair=True, say=quiet)
    assert (found.newer, found.faults) == (1, ())
    assert path.exists()


def test_a_pin_whose_engine_is_lost_is_a_fault_that_stays(store: Store) -> None:
    made = engine(store)
    pin(store, made, "release")
    record_path(store, made).unlink()
    audit(store, repair=True, say=quiet)  # the plan record of the lost engine goes
    found = audit(store, repair=True, say=quiet)
    assert [(fault.kind, fault.repaired) for fault in found.faults] == [("missing", False)]
    assert not found.sound


def test_what_a_collection_removes_meanwhile_is_no_fault(store: Store) -> None:
    blob = store.put_bytes("x", b"x")
    store.put(make_record("ranges", digest("t", 1), {}, 1, (blob,)))
    gone: list[str] = []

    def say(_: str) -> None:
        if not gone:
            gone.append("record, then blob")
            record = store.get("ranges", digest("t", 1))
            assert record
            record_path(store, record).unlink()
            store.path(blob.sha256).unlink()

    assert audit(store, repair=True, say=say).faults == ()
    assert list((store.top / "quarantine").iterdir()) == []
