"""One process of many on a store: ``load.py keys STORE COUNT``, ``soak STORE SECONDS SEED``.

Prints one JSON document.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.canonical import digest
from trtbuild.errors import StoreError
from trtbuild.store import Store, make_record
from trtbuild.store.collect import Limits, collect
from trtbuild.store.lease import get_or_make

if TYPE_CHECKING:
    from trtbuild.store import Record


def keys(store: Store, count: int) -> dict[str, object]:
    """Ask for ``count`` keys, each of which is made of new random bytes if it must be."""
    made: list[str] = []
    digests = []
    for number in range(count):
        key = digest("load", number)

        def make(key: str = key) -> Record:
            made.append(key)
            time.sleep(0.05)
            blob = store.put_bytes("engine", os.urandom(50_000))
            return make_record("engine", key, {}, {}, (blob,))

        record, _ = get_or_make(store, "engine", key, make)
        store.read(record.blobs[0].sha256)
        digests.append(record.blobs[0].sha256)
    return {"made": len(made), "digests": digests}


def soak(store: Store, seconds: float, seed: int) -> dict[str, object]:
    """Look up, make, damage one of a hundred, and collect, until the time is over."""
    draw = random.Random(seed)  # noqa: S311  no secret
    end = time.monotonic() + seconds
    wrong = rounds = refused = 0
    before: tuple[int, int] | None = None
    while time.monotonic() < end:
        rounds += 1
        number = draw.randrange(200)
        key, data = digest("soak", number), number.to_bytes(4, "big") * 2000

        def make(key: str = key, data: bytes = data) -> Record:
            return make_record("engine", key, {}, {}, (store.put_bytes("engine", data),))

        try:
            record, _ = get_or_make(store, "engine", key, make)
            wrong += store.read(record.blobs[0].sha256) != data
            if draw.random() < 0.01:
                damage(store.path(record.blobs[0].sha256), draw)
            if draw.random() < 0.002:
                limits = Limits(high_bytes=0, low_bytes=0, keep_s=0, grace_s=5, patience_s=9)
                collect(store, limits)
        except (StoreError, FileNotFoundError):
            refused += 1
        store.incidents.clear()
        if before is None and time.monotonic() > end - seconds * 0.8:
            before = usage()
    after = usage()
    before = before or after
    return {
        "rounds": rounds,
        "wrong": wrong,
        "refused": refused,
        "grown_mib": round((after[0] - before[0]) / 2**20, 2),
        "files": after[1] - before[1],
    }


def damage(path: Path, draw: random.Random) -> None:
    """Replace a blob by a cut, a flipped or no file."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1
    path.unlink()
    if draw.random() < 0.7:
        path.write_bytes(data[: draw.choice((len(data), len(data) // 2))])


def usage() -> tuple[int, int]:
    """Return resident bytes, and the number of open files."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path("/proc/self/fd").iterdir()))


def main() -> None:
    what, root, *rest = sys.argv[1:]
    store = Store.open(root)
    answer = (
        keys(store, int(rest[0]))
        if what == "keys"
        else soak(store, float(rest[0]), int(rest[1]))
    )
    print(json.dumps(answer))  # noqa: T201  a script's answer


if __name__ == "__main__":
    main()
