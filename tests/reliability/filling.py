"""Fills a store with many entries, written straight to their places: a publish syncs disks."""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING

from trtbuild.canonical import digest
from trtbuild.store.record import Blob, encode_record, make_record

if TYPE_CHECKING:
    from trtbuild.store import Store


def key_of(number: int) -> str:
    return digest("filled", number)


def fill(store: Store, count: int, blob_bytes: int = 64) -> None:
    """Write ``count`` records with a blob each; number 0 was used longest ago."""
    begun = time.time() - 30 * 86400
    for number in range(count):
        data = number.to_bytes(8, "big") * (blob_bytes // 8)
        sha256 = hashlib.sha256(data).hexdigest()
        blob = Blob(name="data", sha256=sha256, bytes=len(data))
        record = make_record("ranges", key_of(number), {"number": number}, number, (blob,))
        paths = store.top / "ac" / "ranges" / record.key[:2] / record.key, store.path(sha256)
        for path, content in zip(paths, (encode_record(record), data), strict=True):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path, (begun + number, begun + number))
            path.chmod(0o444)
