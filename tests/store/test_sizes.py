"""Sizes for people: never 0 for something, and the unit that fits."""

from __future__ import annotations

from trtbuild.store.sizes import shown_size


def test_a_size_has_the_unit_that_fits() -> None:
    sizes = (0, 7, 999, 1000, 1536, 999_999, 35_000_000, 35 * 10**9, 10**16)
    shown = ["0 B", "7 B", "999 B", "1.0 kB", "1.5 kB", "1.0 MB", "35.0 MB", "35.0 GB"]
    assert [shown_size(size) for size in sizes] == [*shown, "10000.0 TB"]
