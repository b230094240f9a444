from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trtbuild.canonical import digest
from trtbuild.errors import StoreError, UsageError
from trtbuild.store import BlobLostError, Store, make_record
from trtbuild.store.publish import set_aside

if TYPE_CHECKING:
    from trtbuild.store import Record

ROOT = Path(__file__).parents[2]
KEY = digest("test", "key")
OTHER = digest("test", "other")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def put(store: Store, key: str, data: bytes) -> Record:
    blob = store.put_bytes("engine", data)
    return store.put(make_record("engine", key, {"of": key}, data.hex(), (blob,)))


def record_path(store: Store, key: str) -> Path:
    return store.top / "ac" / "engine" / key[:2] / key


def overwrite(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    path.chmod(0o444)


def quarantined(store: Store) -> int:
    return len(list((store.top / "quarantine").iterdir()))


def test_what_is_put_is_got_by_any_store_of_the_folder(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "plan"
    source.write_bytes(os.urandom(3_000_000))
    blob = store.put_file("engine", source)
    written = store.put(make_record("engine", KEY, {"a": 1}, {"b": 0.5}, (blob,)))
    other = Store.open(str(store.root))
    assert other.get("engine", KEY) == written
    assert other.read(blob.sha256) == source.read_bytes()
    assert other.verified_path(blob.sha256).read_bytes() == source.read_bytes()
    assert (blob.bytes, blob.sha256) == (
        3_000_000,
        hashlib.sha256(source.read_bytes()).hexdigest(),
    )
    assert list(other.records("engine")) == [written]
    assert other.incidents == []


def test_what_was_not_put_is_a_miss(store: Store) -> None:
    assert store.get("engine", KEY) is None
    assert list(store.records("engine")) == []
    with pytest.raises(BlobLostError, match="is missing"):
        store.read(KEY)
    assert store.incidents == []


def test_the_first_writer_of_a_key_wins(store: Store) -> None:
    first = put(store, KEY, b"first build")
    assert put(store, KEY, b"second build") == first
    assert store.get("engine", KEY) == first


def test_equal_bytes_are_stored_once(store: Store) -> None:
    assert store.put_bytes("a", b"same").sha256 == store.put_bytes("b", b"same").sha256
    assert len(list((store.top / "cas").rglob("??/*"))) == 1


def test_a_record_that_names_a_missing_blob_is_not_stored(store: Store) -> None:
    blob = store.put_bytes("engine", b"x")
    store.path(blob.sha256).unlink()
    with pytest.raises(StoreError, match="names a blob that is not in the store"):
        store.put(make_record("engine", KEY, {}, {}, (blob,)))
    assert not record_path(store, KEY).exists()


def test_a_record_whose_blob_is_lost_is_a_miss_and_can_be_made_again(store: Store) -> None:
    record = put(store, KEY, b"first build")
    store.path(record.blobs[0].sha256).unlink()
    assert store.get("engine", KEY) is None
    again = put(store, KEY, b"second build")
    assert store.get("engine", KEY) == again != record


def test_1000_flipped_bits_of_a_blob_are_never_served(store: Store) -> None:
    data = os.urandom(2048)
    sha256 = store.put_bytes("engine", data).sha256
    for place in random.Random(1).sample(range(8 * len(data)), 1000):  # noqa: S311  no secret
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        overwrite(store.path(sha256), bytes(flipped))
        with pytest.raises(BlobLostError, match="not to be used"):
            store.read(sha256)
    assert quarantined(store) == 1000
    store.put_bytes("engine", data)
    assert store.read(sha256) == data


@pytest.mark.parametrize("change", ["", "grow", "shrink", "flip"])
def test_a_large_blob_is_read_whole_or_not_at_all_whatever_happens_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    good = os.urandom(9 << 20)
    blob = store.put_bytes("engine", good)
    path = store.path(blob.sha256)
    path.chmod(0o600)
    look = os.fstat

    def look_and_change(descriptor: int) -> os.stat_result:
        status = look(descriptor)
        if status.st_size == len(good):
            with path.open("r+b") as file:
                if change == "grow":
                    file.seek(0, os.SEEK_END)
                    file.write(b"more")
                elif change == "shrink":
                    file.truncate(len(good) - 5)
                elif change == "flip":
                    file.seek(-1, os.SEEK_END)
                    file.write(bytes([good[-1] ^ 1]))
        return status

    monkeypatch.setattr("trtbuild.store.reader.os.fstat", look_and_change)
    if not change:
        assert store.read(blob.sha256) == good
        return
    with pytest.raises(BlobLostError, match="its content has the digest"):
        store.read(blob.sha256)


def test_truncated_extended_zeroed_and_swapped_blobs_are_never_served(store: Store) -> None:
    data, other = os.urandom(20_000), os.urandom(20_000)
    record = put(store, KEY, data)
    sha256 = record.blobs[0].sha256
    cuts = [data[:length] for length in range(0, len(data), 512)]
    for wrong in [*cuts, data + b"\0", bytes(len(data)), other]:
        overwrite(store.path(sha256), wrong)
        if len(wrong) != len(data):
            assert store.get("engine", KEY) is None, "the size alone tells"
            assert not store.path(sha256).exists()
            overwrite(store.path(sha256), wrong)
        with pytest.raises(BlobLostError):
            store.verified_path(sha256)
        assert store.get("engine", KEY) is None
    assert put(store, KEY, data) == record


def test_a_damaged_blob_is_replaced_when_it_is_put_again(store: Store) -> None:
    blob = store.put_bytes("engine", b"the bytes")
    overwrite(store.path(blob.sha256), b"THE BYTES")
    assert store.put_bytes("engine", b"the bytes") == blob
    assert store.read(blob.sha256) == b"the bytes"
    assert quarantined(store) == 1
    assert "set aside" in store.incidents[0].reason


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "swap", "foreign", "newer"])
def test_a_damaged_or_foreign_record_is_set_aside_and_is_a_miss(
    store: Store, damage: str
) -> None:
    put(store, KEY, b"the bytes")
    put(store, OTHER, b"other bytes")
    data = record_path(store, KEY).read_bytes()
    wrong = {
        "flip": data[:99] + bytes([data[99] ^ 1]) + data[100:],
        "cut": data[:-1],
        "empty": b"",
        "swap": record_path(store, OTHER).read_bytes(),
        "foreign": b'{"hello": "world"}',
        "newer": data.replace(b".v1+json", b".v2+json"),
    }[damage]
    assert wrong != data
    overwrite(record_path(store, KEY), wrong)
    assert store.get("engine", KEY) is None
    assert quarantined(store) == 1
    assert [incident.path for incident in store.incidents] == [str(record_path(store, KEY))]
    assert put(store, KEY, b"made anew").read(str) == b"made anew".hex()
    assert [record.key for record in store.records("engine")] == sorted([KEY, OTHER])


def test_links_fifos_and_files_of_others_are_not_followed(store: Store, tmp_path: Path) -> None:
    blob = store.put_bytes("engine", b"x")
    path = store.path(blob.sha256)
    (tmp_path / "x").write_bytes(b"x")
    path.unlink()
    path.symlink_to(tmp_path / "x")
    with pytest.raises(BlobLostError, match="not a regular file"):
        store.read(blob.sha256)
    os.mkfifo(path)
    with pytest.raises(BlobLostError, match="not a regular file"):
        store.read(blob.sha256)
    store.put_bytes("engine", b"x")
    path.chmod(0o666)
    with pytest.raises(BlobLostError, match="other users may write"):
        store.read(blob.sha256)
    assert (tmp_path / "x").read_bytes() == b"x"


def test_a_good_file_that_replaced_a_bad_one_stays(store: Store) -> None:
    put(store, KEY, b"the bytes")
    path = record_path(store, KEY)
    assert not set_aside(path, (path.stat().st_dev, 1), store.top / "quarantine")
    assert store.get("engine", KEY) is not None


@pytest.mark.parametrize("key", ["", "../../../etc/passwd", KEY[:-1], KEY.upper(), KEY + "\n"])
def test_no_path_is_made_of_anything_but_digests(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        store.get("engine", key)
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        store.path(key)
    with pytest.raises(ValueError, match="record kind"):
        store.get(f"../{key}", KEY)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(StoreError, match="chmod go-w"):
        Store.open(str(root))
    assert list(root.iterdir()) == []
    root.chmod(0o755)
    assert Store.open(str(root)).root == root


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    root = tmp_path / "store"
    root.mkdir(mode=0o700)
    os.chown(root, 12345, 12345)
    with pytest.raises(StoreError, match="belongs to user 12345"):
        Store.open(str(root))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"store":2,"min_reader":2}', "Upgrade trtbuild"),
        ('{"store":1}', "not a store's version file"),
        ("", "not a store's version file"),
        ("\udcff", "not a store's version file"),
    ],
)
def test_an_unknown_version_is_refused(store: Store, content: str, message: str) -> None:
    overwrite(store.root / "STORE", content.encode(errors="surrogateescape"))
    with pytest.raises(StoreError, match=message):
        Store.open(str(store.root))


def test_a_later_store_that_this_version_can_read_is_opened(store: Store) -> None:
    put(store, KEY, b"x")
    overwrite(store.root / "STORE", b'{"store":2,"min_reader":1,"new":true}')
    assert Store.open(str(store.root)).get("engine", KEY) is not None


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRTBUILD_STORE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert Store.open("").root == tmp_path / "cache" / "trtbuild"
    assert Store.open("here").root == tmp_path / "here"
    assert Store.open(f"file://{tmp_path}/there").root == tmp_path / "there"
    assert Store.open("s3://bucket/engines").root == tmp_path / "cache" / "trtbuild"
    assert Store.open("here,s3://bucket/engines").root == tmp_path / "here"
    with pytest.raises(UsageError, match=r"ftp.*Give a folder"):
        Store.open("here,ftp://host/engines")
    (tmp_path / "file").touch()
    for wrong in ("file", "file/below"):
        with pytest.raises(StoreError, match=r"[Nn]ot a (folder|directory)"):
            Store.open(wrong)


def test_a_folder_copied_elsewhere_is_the_same_store(store: Store, tmp_path: Path) -> None:
    record = put(store, KEY, b"the bytes")
    shutil.copytree(store.root, tmp_path / "copy")
    copy = Store.open(str(tmp_path / "copy"))
    assert copy.get("engine", KEY) == record
    assert copy.read(record.blobs[0].sha256) == b"the bytes"


def test_a_hit_imports_nothing_heavy(store: Store) -> None:
    put(store, KEY, b"x")
    program = (
        "import sys\n"
        "from trtbuild.store import Store, find_engine\n"
        f"assert Store.open({str(store.root)!r}).get('engine', {KEY!r})\n"
        "heavy = {'filelock', 'numpy', 'onnx', 'onnxruntime', 'torch', 'rich', 'typer'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout == "[]\n"


def test_the_environment_names_the_store_where_nobody_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTBUILD_STORE", str(tmp_path / "named"))
    assert Store.open("").root == tmp_path / "named"
    assert Store.open(str(tmp_path / "given")).root == tmp_path / "given"
