"""What a session refuses to be fed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from trtbuild.backends import feeds
from trtbuild.engine import TensorSpec
from trtbuild.errors import UsageError

if TYPE_CHECKING:
    from trtbuild.batches import Array

PAIR = (
    TensorSpec(name="a", dtype="float32", shape=("batch", 4)),
    TensorSpec(name="b", dtype="int64", shape=("batch", "?")),
)


def test_arrays_that_fit_pass() -> None:
    feeds.check(PAIR, {"a": np.zeros((2, 4), np.float32), "b": np.zeros((2, 9), np.int64)})


def test_an_axis_with_one_name_has_one_size() -> None:
    arrays: dict[str, Array] = {
        "a": np.zeros((2, 4), np.float32),
        "b": np.zeros((3, 9), np.int64),
    }
    with pytest.raises(UsageError, match="axis 0 is 'batch', which is 2 in input 'a', got 3"):
        feeds.check(PAIR, arrays)


def test_unnamed_axes_are_free() -> None:
    specs = tuple(TensorSpec(name=name, dtype="float32", shape=("?",)) for name in ("a", "b"))
    feeds.check(specs, {"a": np.zeros(1, np.float32), "b": np.zeros(2, np.float32)})


def test_big_endian_arrays_are_refused() -> None:
    arrays: dict[str, Array] = {
        "a": np.zeros((2, 4), np.dtype(">f4")),
        "b": np.zeros((2, 9), np.int64),
    }
    with pytest.raises(UsageError, match="input 'a': expected float32, got >f4"):
        feeds.check(PAIR, arrays)
