"""How much the blobs of a store have in common, in chunks cut where their content says so.

Nothing is stored in chunks: this tells what it would save. A chunk ends where the gear hash of
its last 16 bytes (FastCDC, USENIX ATC 2016, section 3.2) has 16 zero bits, so that bytes put in
front of a file move no cut behind them, but for the first few.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from trtbuild.engine import Value
from trtbuild.store.inventory import blobs
from trtbuild.store.publish import explained
from trtbuild.store.resolve import known_engines
from trtbuild.store.sizes import shown_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from trtbuild.store.local import Store

LEAST_BYTES = 16 << 10
MOST_BYTES = 256 << 10
BLOCK_BYTES = 4 << 20
_GEAR = np.frombuffer(hashlib.shake_256(b"trtbuild/gear/v1").digest(512), "<u2")


class Sharing(Value, frozen=True, kw_only=True):
    """What some blobs come to, whole and with every chunk counted once.

    ``saved_share`` is 0 to 1: of two blobs that are alike but for their first byte nearly 0.5.
    """

    blobs: int
    size_bytes: int
    distinct_bytes: int
    saved_share: float


class Potential(Value, frozen=True, kw_only=True):
    """What chunks would save among the engines, and among all blobs."""

    engines: Sharing
    all: Sharing


@dataclass(kw_only=True)
class Chunks:
    """The chunks of the files that were added."""

    seen: set[bytes] = field(default_factory=set)
    files: int = 0
    size_bytes: int = 0
    distinct_bytes: int = 0

    def add(self, path: Path) -> None:
        """Read a file, a few MiB at a time; one that was collected meanwhile is no file."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return
        self.files += 1
        with file:
            rest, last = b"", False
            while not last:
                block = file.read(BLOCK_BYTES)
                last = not block
                rest = self._add_chunks(rest + block, last=last)

    def sharing(self) -> Sharing:
        """Return what was added up to now."""
        saved = self.size_bytes - self.distinct_bytes
        return Sharing(
            blobs=self.files,
            size_bytes=self.size_bytes,
            distinct_bytes=self.distinct_bytes,
            saved_share=round(saved / self.size_bytes, 4) if saved else 0.0,
        )

    def _add_chunks(self, data: bytes, *, last: bool) -> bytes:
        """Count the chunks of ``data`` whose end is certain; return the bytes behind them."""
        cuts, start = _cuts(data), 0
        while len(data) - start >= (1 if last else MOST_BYTES):
            end = min(start + MOST_BYTES, len(data))
            place = int(np.searchsorted(cuts, start + LEAST_BYTES))
            if place < len(cuts):
                end = min(end, int(cuts[place]))
            digest = hashlib.sha256(memoryview(data)[start:end]).digest()
            self.size_bytes += end - start
            if digest not in self.seen:
                self.seen.add(digest)
                self.distinct_bytes += end - start
            start = end
        return data[start:]


def potential(store: Store, say: Callable[[str], None]) -> Potential:
    """Read every blob of ``store``; ``say`` is told how far it came.

    Raises:
        StoreError: the store cannot be read.
    """
    plans = {
        blob.sha256
        for record in known_engines(store)
        for blob in record.blobs
        if blob.name == "engine"
    }
    chunks, engines = Chunks(), Chunks().sharing()
    with explained(store.root):
        files = sorted(blobs(store).values(), key=lambda each: each.name not in plans)
        for index, file in enumerate(files, 1):
            say(f"chunks: {index} of {len(files)} ")
            chunks.add(file.path)
            if file.name in plans:
                engines = chunks.sharing()
    return Potential(engines=engines, all=chunks.sharing())


def lines(found: Potential) -> Iterator[str]:
    """Yield what chunks would save as lines for a terminal."""
    for name, each in (("engines", found.engines), ("all", found.all)):
        yield (
            f"chunks, {name:<7} {shown_size(each.size_bytes)} in {each.blobs} blobs, "
            f"{shown_size(each.distinct_bytes)} in distinct chunks: would save "
            f"{each.saved_share:.1%}"
        )


def _cuts(data: bytes) -> npt.NDArray[np.intp]:
    """Return where a chunk may end.

    The hash of 2m bytes is that of the last m plus that of the m before, shifted by m: of 16
    bytes in four passes. No chunk is as short as that, so none depends on bytes before it.
    """
    hashes = _GEAR[np.frombuffer(data, np.uint8)]
    for width in (1, 2, 4, 8):
        hashes[width:] += hashes[:-width] << width
    return np.flatnonzero(hashes == 0) + 1
