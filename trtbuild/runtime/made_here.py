"""What this user made on this machine: one small file for each record, in the state folder.

A store is copied, restored by CI and filled from tiers; who has put a record into it cannot be
told from the store. So what was made here is remembered apart from every store, by all that a
record says: its key, its value and its blobs. Another record of the same bytes does not count.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import TYPE_CHECKING

from trtbuild.canonical import digest
from trtbuild.errors import StoreError
from trtbuild.runtime import trust_files
from trtbuild.store import make_record
from trtbuild.store.reader import read_file

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.store import Record

_MAX_MARK_BYTES = 64


def mark_made(record: Record) -> str:
    """Remember that ``record`` was made here; return why that failed, if it did."""
    path = _mark(record)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        trust_files.make_state_folder()
        path.parent.mkdir(exist_ok=True, mode=0o700)
        with os.fdopen(os.open(draft, flags, 0o600), "wb") as file:
            file.write(path.name.encode())
        draft.replace(path)
    except OSError as error:
        return f"{path.parent}: {error.strerror}"
    return ""


def made_here(kind: str, key: str, preimage: object, value: object) -> Record:
    """Return the record of something that was made just now and is remembered as made here.

    Where that cannot be remembered, it is as if it came from elsewhere.
    """
    record = make_record(kind, key, preimage, value)
    mark_made(record)
    return record


def was_made_here(record: Record) -> bool:
    """Tell whether :func:`mark_made` was called for this very record by this user.

    Others cannot write a file that is this user's and has its own name in it.

    Raises:
        StoreError: the folder cannot be read.
    """
    path = _mark(record)
    try:
        content = read_file(path, _MAX_MARK_BYTES)
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror}: expected to read what was made here. Repair it, or "
            f"name another folder with {trust_files.STATE_VARIABLE}"
        ) from error
    return content is not None and not content.fault and content.data == path.name.encode()


def _mark(record: Record) -> Path:
    value = hashlib.sha256(record.value).hexdigest()
    name = digest("made-here/v1", [record.kind, record.key, value, record.blobs])
    return trust_files.state_folder() / "made" / name
