"""The store: what was made is kept by content, found by key, and verified when it is read.

Single flight (:mod:`trtbuild.store.lease`) is not imported here, since a cache hit needs none.
"""

from __future__ import annotations

from trtbuild.store.local import Incident, Store
from trtbuild.store.reader import BlobLostError
from trtbuild.store.record import Blob, Record, make_record
from trtbuild.store.resolve import find_engine, find_record, put_plan

__all__ = [
    "Blob",
    "BlobLostError",
    "Incident",
    "Record",
    "Store",
    "find_engine",
    "find_record",
    "make_record",
    "put_plan",
]
