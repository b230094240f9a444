"""One build at a time on one GPU, however many processes and users want it."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from trtbuild.backends import gpu, gpu_lock
from trtbuild.engine import Target

if TYPE_CHECKING:
    from pathlib import Path

BUS = "0000:C1:00.0"
PROGRAM = """
import sys, time
from pathlib import Path
from trtbuild.backends import gpu_lock
gpu_lock.FOLDERS = tuple(map(Path, sys.argv[1].split(",")))
with gpu_lock.one_of(sys.argv[2:], lambda text: print("say", text)) as bus:
    print("on", bus, time.monotonic_ns(), end=" ")
    time.sleep(0.15)
    print(time.monotonic_ns())
"""


def users(folders: str, buses: list[str], count: int) -> list[list[str]]:
    """Run processes that use one of ``buses`` at once; what each said, in lines."""
    command = [sys.executable, "-c", PROGRAM, folders, *buses]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    texts = [each.communicate()[0] for each in running]
    assert all(each.returncode == 0 for each in running)
    return [text.splitlines() for text in texts]


def intervals(lines: list[list[str]]) -> dict[str, list[tuple[int, int]]]:
    """Return from when to when each GPU was used, in order."""
    found: dict[str, list[tuple[int, int]]] = {}
    for *_, last in lines:
        _, bus, start, end = last.split()
        found.setdefault(bus, []).append((int(start), int(end)))
    return {bus: sorted(each) for bus, each in found.items()}


def test_users_of_one_gpu_never_overlap(tmp_path: Path) -> None:
    """C5: eight processes, one GPU; those who wait say so once, and where."""
    lines = users(str(tmp_path), [BUS], 8)
    (used,) = intervals(lines).values()
    assert len(used) == 8
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(used))
    waited = [each for each in lines if len(each) == 2]
    assert len(waited) >= 5
    assert all(each[0].startswith(f"say waiting for GPU {BUS}: another") for each in waited)


def test_users_of_one_of_two_gpus_take_both(tmp_path: Path) -> None:
    used = intervals(users(str(tmp_path), [BUS, "0000:C2:00.0"], 8))
    assert len(used) == 2
    for each in used.values():
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(each))


def test_a_killed_user_leaves_the_gpu_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = PROGRAM.replace("0.15", "100").replace('end=" "', "flush=True")
    command = [sys.executable, "-c", program, str(tmp_path), BUS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("on")
        child.kill()
    monkeypatch.setattr(gpu_lock, "FOLDERS", (tmp_path,))
    said: list[str] = []
    with gpu_lock.one_of((BUS,), said.append) as bus:
        assert (bus, said) == (BUS, [])


def test_a_lock_of_another_user_in_a_folder_for_all_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be opened for writing, and still keeps others off."""
    if os.geteuid() != 0:
        pytest.skip("only root makes files of another user")
    tmp_path.chmod(0o1777)
    monkeypatch.setattr(gpu_lock, "FOLDERS", (tmp_path,))
    with gpu_lock.one_of((BUS,), pytest.fail):
        pass
    (file,) = tmp_path.iterdir()
    os.chown(file, 65534, 65534)
    file.chmod(0o444)
    other = os.open(file, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    said: list[str] = []

    def free(text: str) -> None:
        said.append(text)
        os.close(other)

    with gpu_lock.one_of((BUS,), free) as bus:
        assert bus == BUS
    assert len(said) == 1


def test_a_link_is_not_followed_and_the_next_folder_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = tmp_path / "first", tmp_path / "second"
    for folder in folders:
        folder.mkdir()
    victim = tmp_path / "victim"
    (folders[0] / "trtbuild-gpu-0000-c1-00.0.lock").symlink_to(victim)
    monkeypatch.setattr(gpu_lock, "FOLDERS", folders)
    with gpu_lock.one_of((BUS,), pytest.fail):
        assert len(list(folders[1].iterdir())) == 1
    assert not victim.exists()


def test_without_any_folder_the_gpu_is_used_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_lock, "FOLDERS", (tmp_path / "none",))
    said: list[str] = []
    with gpu_lock.one_of((BUS,), said.append) as bus:
        assert bus == BUS
    assert said == [
        f"GPU {BUS}: no lock can be had in {tmp_path / 'none'}: nobody is kept off it"
    ]


def test_no_gpu_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_lock, "FOLDERS", (tmp_path,))
    with gpu_lock.one_of((), pytest.fail) as bus, gpu_lock.all_of((), pytest.fail):
        assert not bus
    assert not list(tmp_path.iterdir())


def test_all_of_several_are_held_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_lock, "FOLDERS", (tmp_path,))
    with contextlib.ExitStack() as stack:
        stack.enter_context(gpu_lock.all_of((BUS, "0000:C2:00.0", BUS), pytest.fail))
        for file in tmp_path.iterdir():
            with file.open() as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert len(list(tmp_path.iterdir())) == 2
    started = time.monotonic()
    with gpu_lock.all_of((BUS,), pytest.fail):
        assert time.monotonic() - started < 5


def test_what_is_measured_holds_the_gpu_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    here = tuple(
        gpu.Gpu(arch=arch, name=name, identity=name, memory_bytes=1)
        for arch, name in (("sm_75", "T4"), ("sm_80", "A30"), ("sm_80", "A100"))
    )
    monkeypatch.setattr(gpu, "gpus", lambda: here)
    monkeypatch.setattr(gpu, "pci_bus_ids", lambda: ("bus0", "bus1", "bus2"))

    def held(*devices: str) -> tuple[str, ...]:
        return gpu_lock.measured(
            [
                Target(backend="tensorrt", arch="sm_80", os="linux-x86_64", device=device)
                for device in devices
            ]
        )

    assert held("A100") == ("bus2",)
    assert held("") == held("A30") == held("gone") == ("bus1",)
    assert held("A100", "") == ("bus1", "bus2")
