"""Results that a remote tier did not take when they were made: each is marked until it does.

    v1/unsent/<tier>/<kind>.<key>      an empty file; <tier> tells places of tiers apart

A mark is durable before the record has a name here, so that no kill and no second run, which
finds the record here, can forget that others lack it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from trtbuild.store.publish import draft, explained, link_new, sync_folders
from trtbuild.store.record import is_digest

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.store.local import Store

_FOLDER = "unsent"
_ABANDONED_S = 24 * 3600
"""A mark without a record is younger than its record, or is left of one that was collected."""


def mark(store: Store, tier: str, kind: str, key: str) -> None:
    """Remember durably that the tier lacks this record.

    Raises:
        StoreError: the store cannot be written.
    """
    with explained(store.root), draft(store.top / "tmp", []) as written:
        link_new(written.path, _path(store, tier, kind, key), store.top)


def unsent(store: Store, tier: str) -> list[tuple[str, str]]:
    """Return kind and key of what the tier lacks, engines before the plans that name them."""
    folder = store.top / _FOLDER / tier
    with explained(store.root):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = (name.partition(".") for name in sorted(names))
    return [(kind, key) for kind, _, key in found if is_digest(key)]


def is_unsent(store: Store, tier: str, kind: str, key: str) -> bool:
    """Tell whether the tier is known to lack this record."""
    return _path(store, tier, kind, key).exists()


def forget(store: Store, tier: str, kind: str, key: str) -> None:
    """Take the mark away: the tier has the record."""
    path = _path(store, tier, kind, key)
    with explained(store.root):
        if path.exists():
            path.unlink(missing_ok=True)
            sync_folders(path.parent, store.top)


def forget_abandoned(store: Store, tier: str, kind: str, key: str) -> None:
    """Take away the mark of a record that has long been collected here."""
    with explained(store.root):
        try:
            marked = _path(store, tier, kind, key).stat().st_mtime
        except FileNotFoundError:
            return
    if time.time() - marked > _ABANDONED_S:
        forget(store, tier, kind, key)


def _path(store: Store, tier: str, kind: str, key: str) -> Path:
    return store.top / _FOLDER / tier / f"{kind}.{key}"
