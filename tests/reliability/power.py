"""Power cuts: publish on a loop-mounted file system, copy its disk as it is, look there."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.canonical import digest
from trtbuild.errors import StoreError
from trtbuild.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SIZES_MIB = {"ext4": 32, "xfs": 320, "btrfs": 160}

WRITE = """
import os, sys
from trtbuild.canonical import digest
from trtbuild.store import Store, make_record
if sys.argv[2] != "synced":
    os.fsync = lambda _: None
store = Store.open(sys.argv[1])
for number in range(3):
    data = bytes([number]) * 200_000
    key = digest("power", number)
    blob = store.put_bytes("engine", data)
    store.put(make_record("engine", key, {}, {}, (blob,)))
    print(key, flush=True)
"""


@contextlib.contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    options = ["-o", "loop,nouuid" if "xfs" in image.name else "loop"]
    subprocess.run(["mount", *options, image, folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def _image(system: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / f"disk.{system}"
    with image.open("wb") as file:
        file.truncate(SIZES_MIB[system] << 20)
    subprocess.run([f"mkfs.{system}", "-q", image], check=True, capture_output=True)
    return image


def can_mount(system: str, folder: Path) -> bool:
    try:
        with mounted(_image(system, folder / "try"), folder / "try" / "at"):
            return True
    except (subprocess.CalledProcessError, OSError):
        return False


def trial(system: str, folder: Path, fsync: str) -> dict[str, int]:
    """Publish three engines, cut the power, and count what became of them."""
    image = _image(system, folder)
    with mounted(image, folder / "at") as at:
        Store.open(str(at / "store"))
        os.sync()
        command = [sys.executable, "-c", WRITE, str(at / "store"), fsync]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        copy = shutil.copyfile(image, folder / f"cut.{system}")
    with mounted(copy, folder / "after") as after:
        counts = _look(Store.open(str(after / "store")), done.stdout.split())
    shutil.rmtree(folder)
    return counts


def _look(store: Store, acknowledged: list[str]) -> dict[str, int]:
    lost = wrong = 0
    for number, key in enumerate(acknowledged):
        assert key == digest("power", number)
        record = store.get("engine", key)
        try:
            data = store.read(record.blobs[0].sha256) if record else None
        except StoreError:
            data = None
        lost += data is None
        wrong += data is not None and data != bytes([number]) * 200_000
    return {"acknowledged": len(acknowledged), "lost": lost, "served_wrong": wrong}
