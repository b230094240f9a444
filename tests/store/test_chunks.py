"""What chunks that blobs share would save."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.store.engines import engine_key, put_engine
from trtbuild.store import Store, chunks

if TYPE_CHECKING:
    from pathlib import Path


def drawn(seed: int, size_bytes: int = 3_000_000) -> bytes:
    return np.random.default_rng(seed).bytes(size_bytes)


def potential(tmp_path: Path, *plans: bytes, other: bytes = b"") -> chunks.Potential:
    store = Store.open(str(tmp_path / "store"))
    for level, plan in enumerate(plans):
        put_engine(store, engine_key("sm_89", level), plan)
    if other:
        store.put_bytes("network", other)
    return chunks.potential(store, lambda _: None)


def test_a_plan_with_bytes_in_front_shares_nearly_all_its_chunks(tmp_path: Path) -> None:
    found = potential(tmp_path, drawn(1), b"in front" + drawn(1)).engines
    assert (found.blobs, found.size_bytes) == (2, 6_000_008)
    assert 0.45 < found.saved_share < 0.5
    assert found.distinct_bytes < 3_000_000 + 2 * chunks.MOST_BYTES


def test_plans_of_other_weights_share_nothing(tmp_path: Path) -> None:
    found = potential(tmp_path, drawn(1), drawn(2))
    assert found.engines.saved_share == 0
    assert found.all == found.engines


def test_what_is_no_plan_counts_among_all_only(tmp_path: Path) -> None:
    found = potential(tmp_path, drawn(1), other=drawn(1) + b"behind")
    assert (found.engines.blobs, found.engines.saved_share) == (1, 0)
    assert (found.all.blobs, found.all.size_bytes) == (2, 6_000_006)
    assert 0.45 < found.all.saved_share < 0.5


@pytest.mark.parametrize("block_bytes", [50_000, 262_144, 262_145, 777_777])
def test_how_much_is_read_at_once_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    data = drawn(1, 900_000) + bytes(700_000) + drawn(2, 500_000)
    (tmp_path / "file").write_bytes(data)
    whole, parts = chunks.Chunks(), chunks.Chunks()
    whole.add(tmp_path / "file")
    monkeypatch.setattr(chunks, "BLOCK_BYTES", block_bytes)
    parts.add(tmp_path / "file")
    assert parts == whole
    assert parts.size_bytes == len(data)
    assert parts.distinct_bytes < len(data) - 200_000, "zeros repeat themselves"


def test_what_was_collected_meanwhile_does_not_count(tmp_path: Path) -> None:
    found = chunks.Chunks()
    found.add(tmp_path / "gone")
    assert found.sharing() == chunks.Sharing(
        blobs=0, size_bytes=0, distinct_bytes=0, saved_share=0.0
    )


def test_a_chunk_is_no_shorter_than_the_least_length(tmp_path: Path) -> None:
    """Else bytes that end a chunk, repeated, would be a chunk with a digest each time."""
    data = drawn(1)
    ending = data[: chunks._cuts(data)[0]][-16:]  # noqa: SLF001  no other says where one ends
    (tmp_path / "file").write_bytes(ending * 10_000)
    found = chunks.Chunks()
    found.add(tmp_path / "file")
    assert found.size_bytes == 160_000
    assert found.distinct_bytes > chunks.LEAST_BYTES
