"""What lies in a store beside records and blobs, for the collection.

    v1/att/<engine>/<digest>       statements: go with the engine
    v1/built/<engine>              marks of what was built here: go with the engine
    v1/checkpoint/<kind>.<key>     goes after a week
    v1/quarantine/<name>           goes after a week

Above the store's limit, checkpoints and quarantine go before any result does, but those that
are not a day old, or as long as results are kept.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from os import scandir
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trtbuild.engine import Value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trtbuild.store.local import Store

FORGOTTEN_S = 7 * 24 * 3600.0
"""How long what failed verification can be looked at, and nobody goes on with a checkpoint."""

_NS = 1_000_000_000

Place = Literal["att", "built", "checkpoint", "quarantine"]


class Remain(Value, frozen=True, kw_only=True):
    """One entry of one of these folders, with all that is below it.

    ``subject`` is the digest of the engine that it is about, "" for others. ``changed_ns`` is
    when it was put there: the time of a renaming is that of the inode.
    """

    place: Place
    path: Path
    size_bytes: int
    changed_ns: int

    @property
    def subject(self) -> str:
        """The digest of the engine that it is about, "" if it is about none."""
        return self.path.name if self.place in ("att", "built") else ""

    def is_older(self, seconds: float) -> bool:
        """Tell whether it has been there for longer than ``seconds``."""
        return self.changed_ns < (time.time() - seconds) * _NS


def remains(store: Store) -> list[Remain]:
    """Return what is in these folders now; one that is missing is empty."""
    places: tuple[Place, ...] = ("att", "built", "checkpoint", "quarantine")
    return [each for place in places for each in _remains(store.top, place)]


def remove(store: Store, remain: Remain) -> bool:
    """Remove it, unless the engine that it is about is (again) here."""
    if remain.subject and store.path(remain.subject).exists():
        return False
    if remain.path.is_dir() and not remain.path.is_symlink():
        shutil.rmtree(remain.path, ignore_errors=True)
    else:
        remain.path.unlink(missing_ok=True)
    return True


def _remains(top: Path, place: Place) -> Iterator[Remain]:
    with contextlib.suppress(FileNotFoundError), scandir(top / place) as entries:
        for entry in entries:
            paths = [Path(entry.path)]
            if entry.is_dir(follow_symlinks=False):
                paths += paths[0].rglob("*")
            with contextlib.suppress(FileNotFoundError):
                found = [path.lstat() for path in paths]
                quarantined = place == "quarantine"
                yield Remain(
                    place=place,
                    path=paths[0],
                    size_bytes=sum(each.st_size for each in found[len(found) > 1 :]),
                    changed_ns=max(
                        each.st_ctime_ns if quarantined else each.st_mtime_ns for each in found
                    ),
                )
