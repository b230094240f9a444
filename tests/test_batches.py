"""Regrouping: the same samples, in the same order, in batches of one size."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trtbuild.batches import rechunk

if TYPE_CHECKING:
    from trtbuild.batches import Batch


def cut(
    values: np.ndarray[tuple[int, ...], np.dtype[np.int64]], lengths: list[int]
) -> list[Batch]:
    """Return ``values`` as batches of the given lengths, the rest in one more."""
    edges = [0, *np.minimum(np.cumsum(lengths), len(values)).tolist(), len(values)]
    return [
        {"x": values[a:b], "y": values[a:b, None] * 2, "label": np.zeros(b - a)}
        for a, b in itertools.pairwise(edges)
    ]


@given(
    number=st.integers(0, 40),
    lengths=st.lists(st.integers(0, 12), max_size=8),
    size=st.integers(1, 9),
)
def test_samples_keep_their_order_and_partners(
    number: int, lengths: list[int], size: int
) -> None:
    values = np.arange(number)
    chunks = list(rechunk(cut(values, lengths), ("x", "y"), size))
    assert [len(chunk["x"]) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    assert all(0 < len(chunk["x"]) <= size for chunk in chunks)
    assert all(list(chunk) == ["x", "y"] for chunk in chunks)
    joined = np.concatenate([np.arange(0), *(chunk["x"] for chunk in chunks)])
    np.testing.assert_array_equal(joined, values)
    for chunk in chunks:
        np.testing.assert_array_equal(chunk["y"], chunk["x"][:, None] * 2)


@given(widths=st.lists(st.integers(1, 3), max_size=20), size=st.integers(1, 5))
def test_samples_of_different_shapes_never_share_a_batch(widths: list[int], size: int) -> None:
    batches = [{"x": np.full((1, width), i)} for i, width in enumerate(widths)]
    chunks = list(rechunk(batches, ("x",), size))
    for width in set(widths):
        found = [c["x"] for c in chunks if c["x"].shape[1] == width]
        wanted = [i for i, w in enumerate(widths) if w == width]
        assert np.concatenate(found)[:, 0].tolist() == wanted
        assert all(len(array) == size for array in found[:-1])


def test_what_has_no_common_first_axis_is_yielded_as_it_is() -> None:
    batches = [
        {"x": np.zeros((4, 2)), "rate": np.array([16000])},
        {"x": np.zeros((4, 2)), "rate": np.array(16000)},
    ]
    found = list(rechunk(batches, ("x", "rate"), 2))
    assert [(b["x"].shape, b["rate"].shape) for b in found] == [((4, 2), (1,)), ((4, 2), ())]
