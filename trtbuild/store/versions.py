"""Where the records of one key lie: several versions of trtbuild can share a store.

    v1/ac/<kind>/ab/<key>          the record, of whichever version was first
    v1/ac/<kind>/ab/<key>.2        that of a version which writes another shape; also .3, .4

A whole record whose value has another shape than the one that is asked for is a miss, and
stays: only what is damaged is set aside. So each version has its own record, and finds it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from trtbuild.engine import Value
from trtbuild.store.reader import read_file
from trtbuild.store.record import (
    MAX_RECORD_BYTES,
    NewerRecordError,
    OtherShapeError,
    Record,
    RecordError,
    check_digest,
    check_kind,
    decode_record,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NAME = re.compile(r"([0-9a-f]{64})(?:\.[2-4])?")
_ENDINGS = ("", ".2", ".3", ".4")


class Found(Value, frozen=True, kw_only=True):
    """What a record's file holds: the record, or in ``fault`` why it is damaged.

    ``other`` is set where the record is whole and of another shape. ``file_id`` is (device,
    inode).
    """

    record: Record | None
    fault: str
    other: bool
    size_bytes: int
    file_id: tuple[int, int]


def record_paths(top: Path, kind: str, key: str) -> Iterator[Path]:
    """Yield where records of ``key`` may lie, in the order in which they are looked at."""
    folder = top / "ac" / check_kind(kind) / check_digest(key)[:2]
    for ending in _ENDINGS:
        yield folder / f"{key}{ending}"


def key_of(name: str) -> str:
    """Return the key of the record whose file has this name, "" if no record's has."""
    found = _NAME.fullmatch(name)
    return found[1] if found else ""


def read_record(path: Path, shape: type[object] = object) -> Found | None:
    """Return what is in the file of a record, whose value is to be of ``shape``.

    None where there is no file.

    Raises:
        NewerRecordError: a later version wrote it in a format that this one cannot read.
        OSError: it may be there, but cannot be read: that is no miss.
    """
    content = read_file(path, MAX_RECORD_BYTES)
    if content is None:
        return None
    record: Record | None = None
    fault, other = content.fault, False
    if not fault:
        try:
            record = decode_record(content.data)
            record.read(shape)
        except NewerRecordError as error:
            message = (
                f"store {path}: {error}. It stays as it is: upgrade trtbuild, or give "
                "another folder with --store"
            )
            raise NewerRecordError(message) from error
        except OtherShapeError:
            other = True
        except RecordError as error:
            fault = str(error)
    if record is not None and (record.kind, record.key) != (
        path.parent.parent.name,
        key_of(path.name),
    ):
        fault, other = f"it is the record of {record.kind} {record.key}", False
        record = None
    return Found(
        record=record,
        fault=fault,
        other=other,
        file_id=content.file_id,
        size_bytes=len(content.data),
    )
