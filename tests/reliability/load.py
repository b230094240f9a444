"""One process of many on a store: ``load.py STORE COUNT``.

Prints one JSON document.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING

from trtbuild.canonical import digest
from trtbuild.store import Store, make_record
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


def main() -> None:
    root, count = sys.argv[1:]
    print(json.dumps(keys(Store.open(root), int(count))))  # noqa: T201  a script's answer


if __name__ == "__main__":
    main()
