"""What a machine remembers of the releases that it loaded, so that none comes back.

Kept apart from every store, and changed only after all checks have passed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from trtbuild.canonical import encode
from trtbuild.engine import Value
from trtbuild.trust import strict_json
from trtbuild.trust.dsse import Sha256
from trtbuild.trust.refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Collection

MAX_MEMORY_BYTES = 16 << 20

_Seq = Annotated[int, msgspec.Meta(ge=1, le=strict_json.MAX_INTEGER)]


class Loaded(Value, frozen=True, kw_only=True):
    """The latest release that was loaded, and the ids of the keys whose signatures counted."""

    seq: _Seq
    keys: tuple[Sha256, ...]


class Memory(Value, frozen=True, kw_only=True):
    """The release with the largest ``seq`` that was loaded, by ``model/target/precision``."""

    schema: Literal[2] = 2
    releases: dict[str, Loaded] = msgspec.field(default_factory=dict)

    def without(self, revoked: Collection[str]) -> Memory:
        """Return the memory without what revoked keys alone have signed.

        Else whoever stole a key once could forbid a machine every release to come.
        """
        kept = {
            place: each
            for place, each in self.releases.items()
            if not each.keys or any(keyid not in revoked for keyid in each.keys)
        }
        return Memory(releases=kept)

    def after(self, place: str, loaded: Loaded) -> Memory:
        """Return the memory once a release was loaded; its number never goes down."""
        known = self.releases.get(place)
        if known is not None and known.seq >= loaded.seq:
            return self
        return Memory(releases={**self.releases, place: loaded})

    def numbers(self) -> dict[str, int]:
        """Return the numbers of the releases by their places."""
        return {place: each.seq for place, each in self.releases.items()}


class _First(Value, frozen=True, kw_only=True):
    """What was written before keys were remembered; its places are ``model/target``."""

    schema: Literal[1]
    releases: dict[str, _Seq]


def read_memory(data: bytes, name: str) -> Memory:
    """Return the memory in a file's bytes; raises TrustError T18 if they are anything else."""
    try:
        value = strict_json.parse(data)
        if isinstance(value, dict) and value.get("schema") == 1:
            first = strict_json.read(value, _First)
            kept = {place: Loaded(seq=seq, keys=()) for place, seq in first.releases.items()}
            return Memory(releases=kept)
        return strict_json.read(value, Memory)
    except strict_json.StrictError as error:
        raise refusal(
            "T18",
            f"{name}: {error}",
            "what trtbuild wrote there about releases that were loaded",
            "If you know why it is damaged, delete it; rollbacks of what it knew go unnoticed",
        ) from error


def write_memory(memory: Memory) -> bytes:
    """Return the bytes of the file."""
    return encode(memory)
