"""One of several processes that use a store while everything goes wrong.

    soak.py STORE SECONDS SEED

One round of a hundred has a fault, of a kind drawn from :data:`FAULTS`. Prints one JSON
document.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from trtbuild.canonical import digest
from trtbuild.errors import StoreError
from trtbuild.store import Store, make_record
from trtbuild.store.collect import Limits, collect
from trtbuild.store.lease import get_or_make

KEYS = 200
SAMPLES = 300
"""How often memory is looked at, after a fifth of the time in which everything warms up."""


@dataclass(kw_only=True)
class Soak:
    """The store, the draw, and what happened so far."""

    store: Store
    draw: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)

    def ask(self, number: int) -> None:
        """Ask for one result and read it; what is served must be right."""
        key, data = digest("soak", number), content(number)
        self.counts["rounds"] += 1
        try:
            record, found = get_or_make(
                self.store,
                "engine",
                key,
                lambda: make_record(
                    "engine", key, {}, {}, (self.store.put_bytes("engine", data),)
                ),
            )
            self.counts["wrong"] += self.store.read(record.blobs[0].sha256) != data
            self.counts["hits" if found else "made"] += 1
        except StoreError:
            self.counts["refused"] += 1
        except Exception as error:  # noqa: BLE001  the answer tells of it
            self.counts["unexpected"] += 1
            self.unexpected = [*self.unexpected[-4:], repr(error)]
        self.store.incidents.clear()

    def files(self, number: int) -> tuple[Path, Path]:
        """Return where the record and the blob of a key lie."""
        key = digest("soak", number)
        blob = hashlib.sha256(content(number)).hexdigest()
        return self.store.top / "ac" / "engine" / key[:2] / key, self.store.path(blob)


def content(number: int) -> bytes:
    return number.to_bytes(4, "big") * 2000


# Faults


def damage(soak: Soak, number: int) -> None:
    """Leave a flipped, a cut or no file in the place of a record or a blob."""
    path = soak.draw.choice(soak.files(number))
    data = bytearray(path.read_bytes())
    data[soak.draw.randrange(len(data))] ^= 1
    path.unlink()
    if soak.draw.random() < 0.7:
        path.write_bytes(data[: soak.draw.choice((len(data), len(data) // 2))])


def quarantine_race(soak: Soak, number: int) -> None:
    """Put a damaged file and at once the good one in a place, while others set it aside."""
    path = soak.draw.choice(soak.files(number))
    good = path.read_bytes()
    for data in (good[:-1], good):
        draft = soak.store.root / f"draft.{os.getpid()}"
        draft.write_bytes(data)
        draft.replace(path)
    for left in (soak.store.top / "quarantine").iterdir():
        left.unlink(missing_ok=True)


def collection(soak: Soak, _: int) -> None:
    """Collect all that nobody used for five seconds."""
    limits = Limits(high_bytes=0, low_bytes=0, keep_s=0, grace_s=5, patience_s=9)
    collect(soak.store, limits)


def lock_loss(soak: Soak, number: int) -> None:
    """Take away the file of a lease, that of publishing too, whoever holds it."""
    for name in (f"engine.{digest('soak', number)}", "publish"):
        (soak.store.top / "lease" / name).unlink(missing_ok=True)


def disk_fault(soak: Soak, number: int) -> None:
    """Let one of the next writes, syncs, links and closes fail."""
    shim = ctypes.CDLL(None)
    soak.files(number)[0].unlink(missing_ok=True)
    shim.arm(soak.draw.randrange(1, 25), soak.draw.choice((errno.EIO, errno.ENOSPC)))
    try:
        soak.ask(number)
    finally:
        shim.arm(0, 0)


def kill(soak: Soak, number: int) -> None:
    """Kill a process that makes a result and may hold its lease."""
    soak.files(number)[0].unlink(missing_ok=True)
    child = os.fork()
    if not child:
        with contextlib.suppress(Exception):
            soak.ask(number)
        os._exit(0)
    time.sleep(soak.draw.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


FAULTS = (damage, damage, quarantine_race, lock_loss, disk_fault, kill, collection)


def run(soak: Soak, seconds: float) -> dict[str, object]:
    """Ask, with a fault in one of a hundred rounds, until the time is over."""
    begun = time.monotonic()
    samples: list[tuple[float, int]] = []
    files = 0
    while (passed := time.monotonic() - begun) < seconds:
        number = soak.draw.randrange(KEYS)
        soak.ask(number)
        if soak.draw.random() < 0.01:
            fault = soak.draw.choice(FAULTS)
            with contextlib.suppress(StoreError, FileNotFoundError):
                fault(soak, number)
                soak.counts[fault.__name__] += 1
        if passed > seconds * (0.2 + 0.8 * len(samples) / SAMPLES):
            files = files or open_files()
            samples.append((passed, resident_bytes()))
    return {
        **soak.counts,
        "wrong": soak.counts["wrong"],
        "said": soak.unexpected,
        "grown_files": open_files() - files,
        "mib_per_hour": round(slope(samples) * 3600 / 2**20, 3),
        "grown_mib": round((samples[-1][1] - samples[0][1]) / 2**20, 3),
    }


def check_all(store: Store) -> None:
    """Ask for every key once more, without faults: each must be served, and be right."""
    soak = Soak(store=store, draw=random.Random(0))  # noqa: S311  no secret
    for _ in range(2):  # what was damaged is made anew when it is asked for again
        soak.counts.clear()
        for number in range(KEYS):
            soak.ask(number)
    right = soak.counts["hits"] + soak.counts["made"]
    assert (right, soak.counts["wrong"]) == (KEYS, 0), soak.unexpected


def slope(samples: list[tuple[float, int]]) -> float:
    """Return the slope of the line of least squares, in bytes per second."""
    mean_s = sum(at for at, _ in samples) / len(samples)
    mean = sum(size for _, size in samples) / len(samples)
    over = sum((at - mean_s) * (size - mean) for at, size in samples)
    return over / (sum((at - mean_s) ** 2 for at, _ in samples) or 1.0)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def main() -> None:
    root, seconds, seed = sys.argv[1:]
    soak = Soak(store=Store.open(root), draw=random.Random(int(seed)))  # noqa: S311  no secret
    print(json.dumps(run(soak, float(seconds))))  # noqa: T201  a script's answer


if __name__ == "__main__":
    main()
