"""Signed statements about engines: ``v1/att/<engine sha256>/<sha256 of the envelope>``.

Append-only files, whole or absent. The store does not know what they say: whoever loads an
engine checks their signatures, and a damaged one is as good as none.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from trtbuild.store.publish import draft, explained, link_new, require_room
from trtbuild.store.reader import read_file
from trtbuild.store.record import check_digest, is_digest

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.store.local import Store

MAX_STATEMENT_BYTES = 1 << 20
MAX_STATEMENTS = 1024
"""About one engine; who loads it refuses to look at more."""

_FOLDER = "att"


def put_statement(store: Store, subject_sha256: str, envelope: bytes) -> str:
    """Store an envelope about an engine durably; return its digest. Again is no error.

    Raises:
        ValueError: it is larger than anybody would read.
        StoreError: the store cannot be written.
    """
    if len(envelope) > MAX_STATEMENT_BYTES:
        message = (
            f"a statement of {len(envelope)} bytes, at most {MAX_STATEMENT_BYTES} are read"
        )
        raise ValueError(message)
    name = hashlib.sha256(envelope).hexdigest()
    with explained(store.root):
        require_room(store.top, len(envelope))
        with draft(store.top / "tmp", [envelope]) as written:
            link_new(written.path, _folder(store, subject_sha256) / name, store.top)
    return name


def statements(store: Store, subject_sha256: str) -> tuple[bytes, ...]:
    """Return the envelopes about an engine, in the order of their digests.

    Files that are not what their name says, or not published by us, are left out. Of more than
    :data:`MAX_STATEMENTS` one more is returned, and the rest is not read.

    Raises:
        StoreError: they may be there, but cannot be read.
    """
    found = []
    folder = _folder(store, subject_sha256)
    with explained(store.root):
        if not folder.is_dir():
            return ()
        for path in sorted(folder.iterdir()):
            content = read_file(path, MAX_STATEMENT_BYTES) if is_digest(path.name) else None
            if content is None or content.fault or content.sha256 != path.name:
                store.note(path, "not a statement, or damaged: it does not count")
                continue
            found.append(content.data)
            if len(found) > MAX_STATEMENTS:
                break
    return tuple(found)


def damaged_statements(store: Store, subject_sha256: str) -> int:
    """Return how many files about an engine :func:`statements` left out."""
    folder = f"{_folder(store, subject_sha256)}/"
    return sum(each.path.startswith(folder) for each in store.incidents)


def signed_subjects(store: Store) -> tuple[str, ...]:
    """Return the digests of the engines that have statements, sorted."""
    folder = store.top / _FOLDER
    with explained(store.root):
        if not folder.is_dir():
            return ()
        return tuple(sorted(path.name for path in folder.iterdir() if is_digest(path.name)))


def _folder(store: Store, subject_sha256: str) -> Path:
    return store.top / _FOLDER / check_digest(subject_sha256)
