"""A tier in a folder that several machines mount; needs nothing but links, so NFS will do.

Leases are numbered files: who links the next number first has it. No lock is needed.
"""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.errors import StoreError
from trtbuild.store.publish import draft, link_new, sync_folders
from trtbuild.store.temporary import new_name, remove_orphans
from trtbuild.store.tiers.tier import (
    NoAnswerError,
    TierError,
    Version,
    bounded,
    too_large,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trtbuild.store.tiers.tier import Upload

_KEPT_NUMBERS = 8
"""Old lease files that stay: one who was slow must find its number taken."""

_READ_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class FolderTier:
    """Objects are files below ``root``, readable as the user's umask has it."""

    root: Path
    has_leases: bool = True

    @property
    def uri(self) -> str:
        """The folder."""
        return str(self.root)

    def get(self, name: str, limit_bytes: int) -> Iterator[bytes] | None:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with self._explained(), contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self._existing(name), flags)
            if os.fstat(descriptor).st_size > limit_bytes:
                os.close(descriptor)
                raise too_large(self.uri, name, limit_bytes)
            return bounded(self.uri, name, self._chunks(descriptor), limit_bytes)
        return None

    def size(self, name: str) -> int | None:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        with self._explained(), contextlib.suppress(FileNotFoundError):
            return self._existing(name).lstat().st_size
        return None

    def put_new(self, upload: Upload) -> bool:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        final = self.root / upload.name
        with self._explained():
            drafts = self._drafts()
            self._make(final.parent)
            with draft(drafts, [upload.data]) as written:
                return link_new(written.path, final, self.root)

    def replace(self, upload: Upload, seen: bytes) -> bool:
        """See :class:`trtbuild.store.tiers.tier.Tier`; of two at one time, the first wins.

        What was there is moved away, and comes back where it was not ``seen`` after all.
        """
        final = self._existing(upload.name)
        with self._explained():
            aside = self._drafts() / new_name()
            with contextlib.suppress(FileNotFoundError):
                if final.read_bytes() != seen:
                    return False
                final.rename(aside)
                if aside.read_bytes() != seen:
                    link_new(aside, final, self.root)
            aside.unlink(missing_ok=True)
        return self.put_new(upload)

    def names(self, prefix: str) -> list[str]:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        folder = self.root / prefix[: prefix.rfind("/") + 1]
        with self._explained():
            self._existing("")
            files = [
                Path(where, name).relative_to(self.root).as_posix()
                for where, _, names in os.walk(folder)
                for name in names
            ]
        return sorted(name for name in files if name.startswith(prefix))

    def peek(self, name: str) -> Version | None:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        with self._explained():
            numbers = self._numbers(name)
            for number in reversed(numbers):
                with contextlib.suppress(FileNotFoundError):
                    data = self._numbered(name, number).read_bytes()
                    return Version(data=data, tag=str(number))
        return None

    def swap(self, name: str, data: bytes, seen: Version | None) -> bool:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        mine = int(seen.tag) + 1 if seen else 1
        final = self._numbered(name, mine)
        with self._explained():
            drafts = self._drafts()
            self._make(final.parent)
            with draft(drafts, [data]) as written:
                if not link_new(written.path, final, self.root):
                    return False
            numbers = self._numbers(name)
            for number in numbers[:-_KEPT_NUMBERS]:
                self._numbered(name, number).unlink(missing_ok=True)
        return max(numbers, default=mine) == mine

    def drop(self, name: str, seen: Version) -> None:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        with self._explained():
            for number in self._numbers(name):
                if number <= int(seen.tag):
                    self._numbered(name, number).unlink(missing_ok=True)

    def _existing(self, name: str) -> Path:
        """Return the path of an object; a share that is not mounted holds nothing, wrongly."""
        if not self.root.is_dir():
            if self.root.exists():
                raise NoAnswerError(f"{self.uri}: not a folder. Name the folder of a share")
            raise NoAnswerError(
                f"{self.uri}: no such folder: is the share mounted? Mount it, make the folder, "
                f"or work without this tier"
            )
        return self.root / name

    def _drafts(self) -> Path:
        """Return the folder for what has no name yet, cleared of what killed writers left."""
        folder = self.root / "v1" / "tmp"
        self._make(folder)
        _cleared(folder)
        return folder

    def _make(self, folder: Path) -> None:
        self._existing("")
        folder.mkdir(parents=True, exist_ok=True)
        sync_folders(folder, self.root)

    def _numbered(self, name: str, number: int) -> Path:
        return self.root / f"{name}.{number:09d}"

    def _numbers(self, name: str) -> list[int]:
        place = self._existing(name)
        found = place.parent.glob(f"{place.name}.*") if place.parent.is_dir() else ()
        suffixes = (path.suffix[1:] for path in found)
        return sorted(int(suffix) for suffix in suffixes if suffix.isdigit())

    def _chunks(self, descriptor: int) -> Iterator[bytes]:
        with self._explained(), os.fdopen(descriptor, "rb", buffering=0) as file:
            while chunk := file.read(_READ_BYTES):
                yield chunk

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise NoAnswerError(
                f"{self.uri}: {error.strerror or error} ({error.filename or self.root}). Check "
                f"that file system and your rights in it, or work without this tier"
            ) from error
        except TierError:
            raise
        except StoreError as error:
            raise TierError(f"{self.uri}: {error}") from error


@functools.cache
def _cleared(folder: Path) -> int:
    """Delete once per process what dead ones left in ``folder``; return how many files."""
    return remove_orphans(folder)
