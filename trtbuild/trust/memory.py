"""What a machine remembers of the releases that it loaded, so that none comes back.

Kept apart from every store, and changed only after all checks have passed.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from trtbuild.canonical import encode
from trtbuild.engine import Value
from trtbuild.trust import strict_json
from trtbuild.trust.refusal import refusal

MAX_MEMORY_BYTES = 16 << 20

_Seq = Annotated[int, msgspec.Meta(ge=1, le=strict_json.MAX_INTEGER)]


class Memory(Value, frozen=True, kw_only=True):
    """The largest ``seq`` that was loaded, by ``model/target``."""

    schema: Literal[1] = 1
    releases: dict[str, _Seq] = msgspec.field(default_factory=dict)

    def after(self, place: str, seq: int) -> Memory:
        """Return the memory once the release ``seq`` was loaded; it never goes down."""
        return Memory(releases={**self.releases, place: max(seq, self.releases.get(place, 0))})


def read_memory(data: bytes, name: str) -> Memory:
    """Return the memory in a file's bytes; raises TrustError T18 if they are anything else."""
    try:
        return strict_json.decode(data, Memory)
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
