"""Several versions of trtbuild on one store: each finds its own record and removes no other."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.store.engines import engine_key, put_engine
from trtbuild.canonical import digest
from trtbuild.engine import MANIFEST_SCHEMA, Manifest
from trtbuild.errors import StoreError
from trtbuild.store import Store, find_engine, make_record
from trtbuild.store.audit import audit
from trtbuild.store.collect import Limits, collect
from trtbuild.store.lease import flight, get_or_make
from trtbuild.store.pins import pin
from trtbuild.store.resolve import get_engine, known_engines
from trtbuild.store.tiers.remote import all_records

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.store import Record

KEY = engine_key("sm_89", 3)
ALL = Limits(high_bytes=0, low_bytes=0, keep_s=0, grace_s=0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def of_another_version(store: Store) -> Record:
    """Put the record of a version whose manifests have one more field."""
    elsewhere = Store.open(f"{store.root}-elsewhere")
    ours = put_engine(elsewhere, KEY, b"theirs")
    fields: dict[str, object] = msgspec.json.decode(ours.value)
    blob = store.put_bytes("engine", b"theirs")
    return store.put(
        make_record("engine", KEY.digest, KEY, fields | {"later": 1, "schema": 3}, (blob,))
    )


def quarantined(store: Store) -> list[str]:
    return [path.name for path in (store.top / "quarantine").iterdir()]


def test_a_record_of_another_version_is_a_miss_and_stays(store: Store) -> None:
    theirs = of_another_version(store)
    assert store.get("engine", KEY.digest, Manifest) is None
    assert store.get("engine", KEY.digest) == theirs
    assert (quarantined(store), store.incidents) == ([], [])
    with pytest.raises(StoreError, match="another version of trtbuild and stays as it is"):
        find_engine(store, KEY.digest).read(Manifest)


def test_two_versions_make_theirs_once_each_in_turn(store: Store) -> None:
    theirs = of_another_version(store)
    ours = put_engine(store, KEY, b"ours")
    for _ in range(3):
        again, found = get_or_make(store, "engine", KEY.digest, lambda: theirs, Manifest)
        assert (again, found) == (ours, True)
        assert store.get("engine", KEY.digest, dict[str, object]) == theirs
    assert quarantined(store) == []
    assert find_engine(store, ours.blobs[0].sha256) == ours
    assert get_engine(store, KEY.digest) == ours
    assert store.keys("engine", "") == [KEY.digest]
    assert list(store.records("engine", Manifest)) == [ours]
    assert audit(store, repair=True, say=lambda _: None).faults == ()


def test_who_damages_one_version_leaves_the_other(store: Store) -> None:
    theirs = of_another_version(store)
    ours = put_engine(store, KEY, b"ours")
    path = store.top / "ac" / "engine" / KEY.digest[:2] / f"{KEY.digest}.2"
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:-9])
    assert store.get("engine", KEY.digest, Manifest) is None
    assert len(quarantined(store)) == 1
    assert store.get("engine", KEY.digest) == theirs
    again = put_engine(store, KEY, b"ours")
    assert store.get("engine", KEY.digest, Manifest) == again
    assert again.blobs == ours.blobs


def test_a_pin_keeps_its_engine_and_others_go_whichever_version_made_them(store: Store) -> None:
    of_another_version(store)
    ours = put_engine(store, KEY, b"ours")
    pin(store, ours, "release")
    collect(store, ALL)
    assert store.get("engine", KEY.digest, Manifest) == ours
    assert store.read(ours.blobs[0].sha256) == b"ours"


def test_the_first_writer_of_each_version_wins(store: Store) -> None:
    of_another_version(store)
    stored: list[Record] = []
    threads = [
        threading.Thread(target=lambda n=n: stored.append(put_engine(store, KEY, b"%d" % n)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({record.blobs[0].sha256 for record in stored}) == 1
    assert len(list((store.top / "ac" / "engine").glob("*/*"))) == 2


def test_a_fifth_version_is_told_that_there_is_no_place(store: Store) -> None:
    key = digest("test", "versions")
    for value in ("text", 1, [1], {"a": 1}):
        store.put(make_record("ranges", key, {}, value), type(value))
    with pytest.raises(StoreError, match="have taken every place of ranges record"):
        store.put(make_record("ranges", key, {}, None), type(None))


def test_what_another_version_has_here_does_not_keep_out_what_a_tier_has(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "share").mkdir(mode=0o700)
    tier = f"{tmp_path / 'share'}?write=yes"
    ours = put_engine(Store.open(f"{tmp_path / 'builder'},{tier}"), KEY, b"ours")
    theirs = of_another_version(store)
    behind = Store.open(f"{store.root},{tier}")
    assert behind.get("engine", KEY.digest, Manifest) == ours
    assert store.get("engine", KEY.digest, Manifest) == ours, "it was not brought here"
    assert store.get("engine", KEY.digest) == theirs


def manifest_of(store: Store) -> dict[str, object]:
    record = put_engine(store, KEY, b"plan")
    fields: dict[str, object] = msgspec.json.decode(record.value)
    return fields


def read_manifest(fields: dict[str, object]) -> Manifest:
    return make_record("engine", KEY.digest, {}, fields).read(Manifest)


def test_a_manifest_of_schema_1_had_nothing_refitted_and_nothing_stripped(store: Store) -> None:
    fields = manifest_of(store) | {"schema": 1}
    for name in ("refit_of", "weights_sha256"):
        del fields[name]
    manifest = read_manifest(fields)
    assert (manifest.schema, manifest.refit_of, manifest.weights_sha256) == (1, "", "")
    stripped: dict[str, object] = json.loads(json.dumps(fields))
    preimage = stripped["preimage"]
    assert isinstance(preimage, dict)
    preimage["settings"].append(["strip_plan", True])
    with pytest.raises(StoreError, match="does not say which weights"):
        read_manifest(stripped)


@pytest.mark.parametrize("field", ["refit_of", "mac_share", "layers", "schema"])
def test_a_field_that_is_missing_in_a_manifest_is_never_its_default(
    field: str, store: Store
) -> None:
    fields = manifest_of(store)
    del fields[field]
    with pytest.raises(StoreError, match="another version of trtbuild and stays as it is"):
        read_manifest(fields)


def test_a_manifest_of_a_later_schema_is_not_read(store: Store) -> None:
    fields = manifest_of(store)
    with pytest.raises(StoreError, match=r"manifest schema 99: expected 1 to "):
        read_manifest(fields | {"schema": 99})


def test_fields_of_a_manifest_do_not_change_without_its_schema() -> None:
    """Whoever changes them raises MANIFEST_SCHEMA, and writes here what they are then."""
    fields = sorted(Manifest.__struct_fields__)
    assert (MANIFEST_SCHEMA, digest("fields", fields)[:12]) == (2, "b54d3eb2b9b8")


def test_while_a_key_is_being_made_the_records_of_all_versions_stay(store: Store) -> None:
    of_another_version(store)
    put_engine(store, KEY, b"ours")
    with flight(store, "engine", KEY.digest, int) as found:
        assert found is None
        assert collect(store, ALL).records == 0


def test_a_list_of_engines_shows_ours_of_each_key_and_uses_none(store: Store) -> None:
    of_another_version(store)
    ours = put_engine(store, KEY, b"ours")
    files = list((store.top / "ac" / "engine").glob("*/*"))
    for path in files:
        os.utime(path, (1e9, 1e9))
    assert known_engines(store) == (ours,)
    assert [record for record in all_records(store) if record.kind == "engine"] == [ours]
    assert {path.stat().st_mtime for path in files} == {1e9}
