"""Digests of large files: remembered while the file cannot have changed, and no longer."""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
import time
from pathlib import Path

import pytest

from trtbuild.pipeline.file_digests import LARGE_BYTES, SWITCH, file_digest
from trtbuild.sources.dependencies import ABSENT
from trtbuild.store import Store

SIZE = LARGE_BYTES + 1


def read_bytes() -> int:
    """Return how many bytes this process has read, by files and from memory."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar:")))


def settle() -> None:
    time.sleep(2.1)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(SIZE))
    return path


def remembered(store: Store) -> int:
    return len(store.keys("file", ""))


def test_a_large_file_is_read_once_and_again_after_every_change(
    store: Store, large: Path
) -> None:
    assert file_digest(store, str(large)) == sha256(large)
    assert remembered(store) == 0, "a file that was written just now may be written again"
    settle()
    assert file_digest(store, str(large)) == sha256(large)
    if remembered(store) == 0:
        pytest.skip("the temporary folder's file system is none on which files are remembered")
    before = read_bytes()
    assert file_digest(store, str(large)) == sha256(large.resolve())
    assert read_bytes() - before - SIZE < SIZE, "the test itself reads it once"

    times = large.stat()
    with large.open("r+b") as file:  # one bit in place, and the old times put back
        first = file.read(1)[0]
        file.seek(0)
        file.write(bytes([first ^ 1]))
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_digest(store, str(large)) == sha256(large)

    other = large.with_name("other")
    other.write_bytes(os.urandom(SIZE))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(large)
    assert file_digest(store, str(large)) == sha256(large)
    large.unlink()
    assert file_digest(store, str(large)) == ABSENT


def test_a_write_through_a_mapping_that_is_still_dirty_is_a_change(
    store: Store, large: Path
) -> None:
    with large.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0] ^= 1
        settle()
        assert file_digest(store, str(large)) == sha256(large)
        memory[0] ^= 2  # without writing the page first, this would change no time
        assert file_digest(store, str(large)) == sha256(large)


@pytest.mark.parametrize("why", ["small", "switched off", "in memory"])
def test_not_remembered(
    why: str, store: Store, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if why == "in memory" else None) as name:  # noqa: S108  where Linux has it
        if why == "in memory":
            large = Path(name) / "weights"
            large.write_bytes(os.urandom(SIZE))
        if why == "small":
            large.write_bytes(b"1")
        if why == "switched off":
            monkeypatch.setenv(SWITCH, "0")
        settle()
        assert file_digest(store, str(large)) == sha256(large)
        assert remembered(store) == 0
