"""What a tier can do. It holds named objects and is trusted with nothing: callers verify."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trtbuild.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trtbuild.store.record import Blob

CONNECT_S = 2.0
"""How long a connection may take to come about."""

LOOKUP_S = 5.0
"""How long an answer to a small question may take; no new try begins after it."""

PART_S = 60.0
"""How long a part of a large object may take."""

PART_BYTES = 8 << 20
"""What is read or sent at a time: memory stays a few times this, whatever an object's size."""


_LOGIN = re.compile(r"://[^\s/?#]*@")


class TierError(StoreError):
    """A remote tier could not answer, or what it sent is not to be used: never a miss.

    Libraries and servers say whole URLs: user and password are taken out of every message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_LOGIN.sub("://…@", message))


class NoAnswerError(TierError):
    """A remote tier did not answer, or refuses this machine: all of it, not one object."""


class TooLargeError(TierError):
    """An object has more bytes than anybody reads of it: it alone is not to be used."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """An object to be stored in one request.

    ``links`` are the blobs that it names: a tier that deletes what nothing names must know.
    """

    name: str
    data: bytes
    links: tuple[Blob, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Version:
    """The content of a small object, and what tells this version from others."""

    data: bytes
    tag: str


class Tier(Protocol):
    """Named objects on a shared folder, in an object store or a registry.

    Every method raises TierError where the tier cannot tell.
    """

    @property
    def uri(self) -> str:
        """What a person calls this tier; holds no password."""
        ...

    @property
    def has_leases(self) -> bool:
        """Whether :meth:`swap` is atomic here."""
        ...

    def get(self, name: str, limit_bytes: int) -> Iterator[bytes] | None:
        """Return the object's bytes in parts, at most ``limit_bytes``; None where none is."""
        ...

    def size(self, name: str) -> int | None:
        """Return the size in bytes, None where none is."""
        ...

    def put_new(self, upload: Upload) -> bool:
        """Store an object whole, or not at all; False where the name is taken."""
        ...

    def replace(self, upload: Upload, seen: bytes) -> bool:
        """Store an object in place of one whose bytes are ``seen``; False if it changed."""
        ...

    def names(self, prefix: str) -> Iterable[str]:
        """Return the names of all objects that begin with ``prefix``, sorted."""
        ...

    def peek(self, name: str) -> Version | None:
        """Return a small object that changes, None where none is."""
        ...

    def swap(self, name: str, data: bytes, seen: Version | None) -> bool:
        """Replace what :meth:`peek` has ``seen`` (None: nothing); False if it changed since."""
        ...

    def drop(self, name: str, seen: Version) -> None:
        """Remove what :meth:`peek` has ``seen``; what came after it may go too."""
        ...


def read_small(tier: Tier, name: str, limit_bytes: int) -> bytes | None:
    """Return an object whole, None where none is.

    Raises:
        TierError: the tier cannot tell.
        TooLargeError: the object is larger than ``limit_bytes``.
    """
    chunks = tier.get(name, limit_bytes)
    return None if chunks is None else b"".join(chunks)


def bounded(uri: str, name: str, chunks: Iterable[bytes], limit_bytes: int) -> Iterator[bytes]:
    """Yield ``chunks``, and refuse to go on once they are more than ``limit_bytes``."""
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limit_bytes:
            raise too_large(uri, name, limit_bytes)
        yield chunk


def too_large(uri: str, name: str, limit_bytes: int) -> TierError:
    """Return the error that says that an object is larger than it may be."""
    return TooLargeError(
        f"{uri}: {name} has more than the {limit_bytes} bytes that it may have: it was not "
        f"read. Delete it there, and push it again from a sound store"
    )
