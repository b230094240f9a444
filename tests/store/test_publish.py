from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trtbuild.canonical import digest
from trtbuild.errors import StoreError
from trtbuild.store import Store, make_record
from trtbuild.store.publish import draft, explained
from trtbuild.store.temporary import FOREIGN_AGE_S, new_name

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = digest("test", "key")


def files(store: Store) -> list[str]:
    """What is visible or left over, apart from folders."""
    return sorted(
        path.relative_to(store.top).parts[0]
        for path in store.top.rglob("*")
        if not path.is_dir()
    )


@contextmanager
def limited(which: int, value: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))


def test_publishing_goes_data_name_folders_and_the_record_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(str(tmp_path / "store"))
    seen: list[str] = []

    def place(file: int | str | os.PathLike[str]) -> str:
        path = Path(f"/proc/self/fd/{file}").readlink() if isinstance(file, int) else Path(file)
        name = str(path.relative_to(store.root))
        return "draft" if name.startswith("v1/tmp/") else name

    def watch(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: int | str | os.PathLike[str]) -> None:
            named = arguments if name == "link" else arguments[:1]
            seen.append(" ".join([name, *(place(each) for each in named)]))
            real(*arguments)

        monkeypatch.setattr(os, name, call)

    for name in ("fchmod", "fsync", "link"):
        watch(name)
    blob = store.put_bytes("engine", b"bytes of an engine")
    store.put(make_record("engine", KEY, {}, {}, (blob,)))
    shard, record_shard = f"v1/cas/sha256/{blob.sha256[:2]}", f"v1/ac/engine/{KEY[:2]}"
    assert seen == [
        "fchmod draft",
        "fsync draft",
        f"link draft {shard}/{blob.sha256}",
        f"fsync {shard}",
        "fsync v1/cas/sha256",
        "fsync v1/cas",
        "fsync v1",
        "fchmod draft",
        "fsync draft",
        f"link draft {record_shard}/{KEY}",
        f"fsync {record_shard}",
        "fsync v1/ac/engine",
        "fsync v1/ac",
        "fsync v1",
    ]


def test_published_files_are_read_only_and_folders_private(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "a" / "store"))
    blob = store.put_bytes("engine", b"x")
    store.put(make_record("engine", KEY, {}, {}, (blob,)))
    modes = {
        (path.is_dir(), path.stat().st_mode & 0o777)
        for path in [store.root, *store.root.rglob("*")]
    }
    assert modes == {(True, 0o700), (False, 0o444)}


def test_a_file_that_may_not_grow_leaves_nothing_and_the_store_works_after(
    tmp_path: Path,
) -> None:
    store = Store.open(str(tmp_path / "store"))
    with (
        limited(resource.RLIMIT_FSIZE, 100_000),
        pytest.raises(StoreError, match=r"File too large.*free space"),
    ):
        store.put_bytes("engine", bytes(1_000_000))
    assert files(store) == []
    blob = store.put_bytes("engine", bytes(1_000_000))
    assert store.read(blob.sha256) == bytes(1_000_000)


def test_a_full_disk_leaves_nothing_and_the_store_works_after(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir(mode=0o700)
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() or not mount or not umount:
        pytest.skip("only root can mount a small file system")
    size = ["-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(disk)]
    if subprocess.run([mount, *size], check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        store = Store.open(str(disk / "store"))
        with pytest.raises(StoreError, match=r"2000000 bytes to write, .* free space"):
            store.put_bytes("engine", bytes(2_000_000))
        with (
            pytest.raises(StoreError, match=r"No space left on device.*free space"),
            explained(store.root),
            draft(store.top / "tmp", (bytes(100_000) for _ in range(20))),
        ):
            pass
        assert files(store) == []
        blob = store.put_bytes("engine", bytes(500_000))
        assert store.read(blob.sha256) == bytes(500_000)
    finally:
        subprocess.run([umount, disk], check=True)


def test_what_cannot_be_opened_is_an_error_and_no_miss(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    blob = store.put_bytes("engine", b"x")
    store.put(make_record("engine", KEY, {}, {}, (blob,)))
    with limited(resource.RLIMIT_NOFILE, 0):
        with pytest.raises(StoreError, match="Too many open files"):
            store.get("engine", KEY)
        with pytest.raises(StoreError, match="Too many open files"):
            store.read(blob.sha256)
        with pytest.raises(StoreError, match="Too many open files"):
            store.put_bytes("engine", b"y")
    assert store.get("engine", KEY) is not None
    assert files(store) == ["ac", "cas", "lease"]


def test_the_next_open_removes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    tmp = store.top / "tmp"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, boot, pid, rest = new_name().split(".")
    kept = [
        f"{host}.{boot}.{pid}.{rest}",
        f"{host}.{boot}.1.{rest}",
        f"elsewhere.{boot}.{dead.pid}.{rest}",
        f"{host}.another-boot.{dead.pid}.{rest}",
        "notes.txt",
    ]
    (tmp / f"{host}.{boot}.{dead.pid}.{rest}").write_bytes(b"half")
    (tmp / f"{host}.{boot}.{dead.pid}.folder" / "inner").mkdir(parents=True)
    old = tmp / f"elsewhere.old.{dead.pid}.{rest}"
    for path in [old, *(tmp / name for name in kept)]:
        path.write_bytes(b"half")
    os.utime(old, (0, old.stat().st_mtime - FOREIGN_AGE_S - 60))
    Store.open(str(store.root))
    assert sorted(path.name for path in tmp.iterdir()) == sorted(kept)


def test_scratch_is_private_and_ends_with_its_use(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    with store.scratch() as scratch:
        assert scratch.stat().st_mode & 0o777 == 0o700
        assert scratch.stat().st_dev == store.root.stat().st_dev
        (scratch / "inner").mkdir()
        (scratch / "inner" / "engine").write_bytes(b"x")
        Store.open(str(store.root))
        assert (scratch / "inner" / "engine").exists(), "taken from a living process"
    assert not scratch.exists()
