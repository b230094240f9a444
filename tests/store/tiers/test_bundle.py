"""One file for machines without a network: the same bytes, and nothing in it believed."""

from __future__ import annotations

import hashlib
import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from trtbuild.canonical import digest
from trtbuild.errors import TrtbuildError
from trtbuild.store import Store, make_record
from trtbuild.store.statements import put_statement, statements
from trtbuild.store.tiers.bundle import read_bundle, write_bundle
from trtbuild.store.tiers.remote import all_records

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = digest("test", "key")
Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.open(str(tmp_path / "store"))
    blob = made.put_bytes("engine", b"engine" * 1000)
    made.put(make_record("engine", KEY, {}, {}, (blob,)))
    made.put(make_record("plan", blob.sha256, {}, {"engine_key": KEY}))
    made.put(make_record("memo", KEY, {}, {"path": "/elsewhere/mine"}))
    put_statement(made, blob.sha256, b"signed")
    return made


def test_what_was_exported_is_imported_whole_and_exports_to_the_same_bytes(
    store: Store, tmp_path: Path
) -> None:
    write_bundle(store, all_records(store), tmp_path / "one.tar")
    other = Store.open(str(tmp_path / "other"))
    assert [record.kind for record in read_bundle(other, tmp_path / "one.tar")] == [
        "engine",
        "plan",
    ]
    sha256 = hashlib.sha256(b"engine" * 1000).hexdigest()
    assert other.get("engine", KEY) == store.get("engine", KEY)
    assert other.read(sha256) == b"engine" * 1000
    assert statements(other, sha256) == (b"signed",)
    write_bundle(other, reversed(all_records(other)), tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert b"/elsewhere/mine" not in (tmp_path / "one.tar").read_bytes()


def entry(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE) -> Callable[..., None]:
    def add(members: Members) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, len(data), "/etc/passwd"
        members.append((info, data))

    return add


def change(prefix: str, *, cut: bool = False) -> Callable[..., None]:
    def spoil(members: Members) -> None:
        for place, (info, data) in enumerate(members):
            if info.name.startswith(prefix):
                spoiled = data[:-1] if cut else data[:-1] + bytes([data[-1] ^ 1])
                info.size = len(spoiled)
                members[place] = (info, spoiled)

    return spoil


def drop(prefix: str) -> Callable[..., None]:
    def remove(members: Members) -> None:
        members[:] = [each for each in members if not each[0].name.startswith(prefix)]

    return remove


def twice(members: Members) -> None:
    members.append(members[-1])


ATTACKS = {
    "traversal": entry("../../evil"),
    "absolute path": entry("/tmp/evil"),  # noqa: S108  it must not come to be
    "other name": entry("blobs/sha256/../../evil"),
    "symlink": entry("blobs/sha256/" + "0" * 64, b"", tarfile.SYMTYPE),
    "hard link": entry("blobs/sha256/" + "0" * 64, b"", tarfile.LNKTYPE),
    "device": entry("blobs/sha256/" + "0" * 64, b"", tarfile.CHRTYPE),
    "pipe": entry("blobs/sha256/" + "0" * 64, b"", tarfile.FIFOTYPE),
    "folder": entry("evil", b"", tarfile.DIRTYPE),
    "twice": twice,
    "changed blobs": change("blobs/"),
    "shorter blobs": change("blobs/", cut=True),
    "no blobs": drop("blobs/"),
    "changed index": change("index.json"),
    "no index": drop("index.json"),
    "no layout": drop("oci-layout"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_archive_that_was_changed_is_refused_and_nothing_of_it_is_seen(
    store: Store, tmp_path: Path, attack: str
) -> None:
    write_bundle(store, all_records(store), tmp_path / "one.tar")
    with tarfile.open(tmp_path / "one.tar") as archive:
        members: Members = []
        for info in archive:
            file = archive.extractfile(info)
            members.append((info, file.read() if file else b""))
    ATTACKS[attack](members)
    with tarfile.open(tmp_path / "two.tar", "w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    other = Store.open(str(tmp_path / "other"))
    with pytest.raises(TrtbuildError):
        read_bundle(other, tmp_path / "two.tar")
    assert other.get("engine", KEY) is None
    assert not list(other.top.glob("cas/sha256/*/*"))


def test_every_single_changed_byte_is_harmless(store: Store, tmp_path: Path) -> None:
    write_bundle(store, all_records(store), tmp_path / "one.tar")
    good = (tmp_path / "one.tar").read_bytes()
    wanted = store.get("engine", KEY)
    for place in range(0, len(good), 397):
        bad = good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :]
        (tmp_path / "bad.tar").write_bytes(bad)
        other = Store.open(str(tmp_path / f"other{place}"))
        try:
            read_bundle(other, tmp_path / "bad.tar")
        except TrtbuildError:
            continue
        found = other.get("engine", KEY)
        assert found in (None, wanted)
        if found is not None:
            assert other.read(found.blobs[0].sha256) == b"engine" * 1000


@pytest.mark.parametrize("length", [0, 100, 512, 5000])
def test_a_file_that_is_cut_short_is_refused(store: Store, tmp_path: Path, length: int) -> None:
    write_bundle(store, all_records(store), tmp_path / "one.tar")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "one.tar").read_bytes()[:length])
    with pytest.raises(TrtbuildError):
        read_bundle(Store.open(str(tmp_path / "other")), tmp_path / "cut.tar")


def test_an_import_that_fails_says_what_it_brought(store: Store, tmp_path: Path) -> None:
    for name in ("first", "second"):
        blob = store.put_bytes("engine", name.encode() * 1000)
        store.put(make_record("engine", digest("test", name), {}, {}, (blob,)))
    path = tmp_path / "all.tar"
    records = all_records(store)
    write_bundle(store, records, path)
    in_order = sorted(records, key=lambda record: (record.kind, record.key))
    brought = sum(record.kind == "engine" for record in records) - 1
    data = store.path(in_order[brought].blobs[0].sha256).read_bytes()
    path.write_bytes(path.read_bytes().replace(data, b"x" * len(data)))
    other = Store.open(str(tmp_path / "other"))
    with pytest.raises(TrtbuildError, match=f"{len(records)} records {brought} were imported"):
        read_bundle(other, path)
    assert len(all_records(other)) == brought
