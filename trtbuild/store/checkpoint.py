"""Where long work saves how far it came, so that a killed run goes on instead of starting over.

A checkpoint saves time and nothing else: it is not published, not in any record, and whoever
reads one checks it and starts over where it is not whole.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtbuild.store.record import check_digest, check_kind
from trtbuild.store.temporary import new_name

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.store.local import Store

_FORGOTTEN_S = 7 * 24 * 3600
"""Nobody goes on with work that lay for a week."""


@dataclass(frozen=True, kw_only=True)
class StoredCheckpoint:
    """The checkpoint of one stage; who makes that stage holds its lease."""

    path: Path
    drafts: Path

    def load(self) -> bytes | None:
        """Return what was saved last, None where nothing was or it cannot be read."""
        with contextlib.suppress(OSError):
            return self.path.read_bytes()
        return None

    def save(self, data: bytes) -> None:
        """Replace what was saved, all or nothing; a full disk leaves things as they are."""
        draft = self.drafts / new_name()
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            draft.write_bytes(data)
            draft.replace(self.path)
        draft.unlink(missing_ok=True)

    def remove(self) -> None:
        """Forget it, and those that nobody came back for."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
            for other in self.path.parent.iterdir():
                if time.time() - other.stat().st_mtime > _FORGOTTEN_S:
                    other.unlink(missing_ok=True)


def checkpoint(store: Store, kind: str, key: str) -> StoredCheckpoint:
    """Return the checkpoint of a stage, whether there is one or not."""
    name = f"{check_kind(kind)}.{check_digest(key)}"
    return StoredCheckpoint(path=store.top / "checkpoint" / name, drafts=store.top / "tmp")
