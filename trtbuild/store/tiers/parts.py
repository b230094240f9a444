"""Large blobs as parts: objects by their own digests, and an index that names them in order.

So an upload that was killed goes on with the parts that are missing, each is one conditional
request, and several travel at a time. The index goes last: what is visible is whole.
"""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec

from trtbuild.canonical import encode
from trtbuild.engine import Value
from trtbuild.store.record import Blob, check_digest
from trtbuild.store.tiers.names import blob_name, parts_name
from trtbuild.store.tiers.tier import PART_BYTES, TierError, Upload, read_small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from trtbuild.store.tiers.tier import Tier

T = TypeVar("T")

AT_ONCE = 4
"""Parts that are sent at a time; of those that come, one less and the one that is written."""

_MAX_INDEX_BYTES = 16 << 20
_DIGITS = 5


class LostPartError(TierError):
    """A part that an index names is not in the tier: the blob is as good as absent."""


class Index(Value, frozen=True, kw_only=True):
    """The parts of one blob by digest, in order, all of ``part_bytes`` but the last.

    ``checksum`` is over them: a damaged digest must not look like a part that is lost.
    """

    sha256: str
    bytes: int
    part_bytes: int
    parts: tuple[str, ...]
    checksum: str

    def __post_init__(self) -> None:
        """Refuse what cannot be a blob's index; object names are made of it."""
        for digest in (self.sha256, *self.parts):
            check_digest(digest)
        if self.part_bytes < 1 or len(self.parts) != -(-self.bytes // self.part_bytes):
            message = f"{len(self.parts)} parts for {self.bytes} bytes"
            raise ValueError(message)
        if self.checksum != _checksum(self.parts):
            message = "its checksum is not that of its parts"
            raise ValueError(message)

    def part(self, number: int) -> Blob:
        """Return one part as the blob that it is."""
        left = self.bytes - number * self.part_bytes
        return Blob(
            name=f"part{number:0{_DIGITS}d}",
            sha256=self.parts[number],
            bytes=min(self.part_bytes, left),
        )


def _checksum(parts: Iterable[str]) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def is_large(blob: Blob) -> bool:
    """Tell whether a blob goes in parts."""
    return blob.bytes > PART_BYTES


def fetch_index(tier: Tier, blob: Blob) -> Index | None:
    """Return the index of a large blob, None where the tier has none.

    Raises:
        TierError: the tier cannot tell, or what it has is not that index.
    """
    name = parts_name(blob.sha256)
    data = read_small(tier, name, _MAX_INDEX_BYTES)
    if data is None:
        return None
    try:
        index = msgspec.json.decode(data, type=Index)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise _damaged(tier, name, str(error)) from error
    if (index.sha256, index.bytes) != (blob.sha256, blob.bytes):
        raise _damaged(tier, name, "it is not the index of that blob")
    if index.part_bytes > PART_BYTES:
        raise _damaged(tier, name, f"its parts have more than {PART_BYTES} bytes")
    return index


def chunks_of(tier: Tier, index: Index) -> Iterator[bytearray]:
    """Yield the parts of a blob in order, each verified, the next ones on their way meanwhile.

    Raises:
        LostPartError: the tier lacks one.
        TierError: the tier cannot tell, or sends something else.
    """
    count = len(index.parts)
    return _ahead(lambda number: _fetched(tier, index.part(number)), count, AT_ONCE - 1)


def is_whole(tier: Tier, index: Index) -> bool:
    """Tell whether every part that ``index`` names is in ``tier``, by name and size."""
    present = _ahead(lambda number: _has(tier, index.part(number)), len(index.parts))
    return all(list(present))


def send(
    tier: Tier, path: Path, blob: Blob, sent: Callable[[int], None]
) -> tuple[Index, list[Blob]]:
    """Send the file at ``path`` in parts; return its index, and the parts that had to go.

    ``sent`` is told the bytes of each part once the tier has it.

    Raises:
        TierError: the tier cannot take it.
    """
    work = partial(_sent, tier, path)
    parts, new = [], []
    for part, is_new in _ahead(work, -(-blob.bytes // PART_BYTES)):
        parts.append(part.sha256)
        if is_new:
            new.append(part)
        sent(part.bytes)
    index = Index(
        sha256=blob.sha256,
        bytes=blob.bytes,
        part_bytes=PART_BYTES,
        parts=tuple(parts),
        checksum=_checksum(parts),
    )
    tier.put_new(Upload(name=parts_name(blob.sha256), data=encode(index), links=links(index)))
    return index, new


def links(index: Index) -> tuple[Blob, ...]:
    """Return the parts as blobs that a record or an index names."""
    return tuple(index.part(number) for number in range(len(index.parts)))


def _sent(tier: Tier, path: Path, number: int) -> tuple[Blob, bool]:
    with path.open("rb") as file:
        file.seek(number * PART_BYTES)
        data = file.read(PART_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    part = Blob(name=f"part{number:0{_DIGITS}d}", sha256=digest, bytes=len(data))
    if _has(tier, part):
        return part, False
    return part, tier.put_new(Upload(name=blob_name(digest), data=data))


def _has(tier: Tier, part: Blob) -> bool:
    name = blob_name(part.sha256)
    size_bytes = tier.size(name)
    if size_bytes not in (None, part.bytes):
        raise _damaged(tier, name, f"it has {size_bytes} bytes, the part has {part.bytes}")
    return size_bytes is not None


def _fetched(tier: Tier, part: Blob) -> bytearray:
    """Return a part, read into one buffer: joining chunks would take its size twice."""
    name = blob_name(part.sha256)
    chunks = tier.get(name, part.bytes)
    if chunks is None:
        raise LostPartError(f"{tier.uri}: {name}: missing there: push the blob again")
    data, size_bytes = bytearray(part.bytes), 0
    for chunk in chunks:
        data[size_bytes : size_bytes + len(chunk)] = chunk
        size_bytes += len(chunk)
    if size_bytes != part.bytes or hashlib.sha256(data).hexdigest() != part.sha256:
        raise _damaged(tier, name, f"its {size_bytes} bytes have another digest")
    return data


def _ahead(work: Callable[[int], T], count: int, at_once: int = AT_ONCE) -> Iterator[T]:
    """Yield ``work(0)``, ``work(1)`` and so on, the next ones begun before they are wanted."""
    pool = ThreadPoolExecutor(at_once)
    try:
        begun = min(at_once, count)
        futures = deque(pool.submit(work, number) for number in range(begun))
        while futures:
            result = futures.popleft().result()
            if begun < count:
                futures.append(pool.submit(work, begun))
                begun += 1
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _damaged(tier: Tier, name: str, reason: str) -> TierError:
    return TierError(
        f"{tier.uri}: {name}: not to be used: {reason}. Nothing of it was stored here; delete "
        f"it there, and push the blob again from a sound store"
    )
