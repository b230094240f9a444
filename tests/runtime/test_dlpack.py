"""Arrays cross by DLPack: read from capsules of others, written for others."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from trtbuild.backends import dlpack
from trtbuild.backends.device_arrays import on_host

HERE = (dlpack.CPU, 0)


class Offered:
    """A NumPy array that is offered by our capsules."""

    def __init__(self, dtype: str) -> None:
        self.array = np.arange(6).astype(dtype).reshape(2, 3)

    def __dlpack_device__(self) -> tuple[int, int]:
        return HERE

    def __dlpack__(self, **_newer: object) -> Any:  # noqa: ANN401  capsules have no type
        layout = dlpack.Layout(
            address=self.array.ctypes.data,
            shape=self.array.shape,
            dtype=self.array.dtype.name,
            contiguous=True,
            device=HERE,
        )
        return dlpack.write(layout, self)


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "int32", "int64", "uint8", "float16", "float32"]
)
def test_what_we_write_numpy_reads_and_the_reverse(dtype: str) -> None:
    offered = Offered(dtype)
    taken = np.from_dlpack(offered)
    np.testing.assert_array_equal(taken, offered.array)
    found = dlpack.read(offered.array.__dlpack__())
    assert found == (offered.array.ctypes.data, (2, 3), dtype, True, HERE)


@pytest.mark.parametrize("consumed", [True, False])
def test_an_owner_lives_as_long_as_somebody_reads(*, consumed: bool) -> None:
    offered = Offered("float32")
    alive = weakref.ref(offered)
    held = np.from_dlpack(offered) if consumed else offered.__dlpack__()
    del offered
    gc.collect()
    assert alive() is not None
    del held
    gc.collect()
    assert alive() is None


def test_strides_are_seen() -> None:
    array = np.zeros((4, 6), np.float32)
    assert not dlpack.read(array.T.__dlpack__()).contiguous
    assert not dlpack.read(array[:, ::2].__dlpack__()).contiguous
    assert dlpack.read(array[1:3].__dlpack__()).contiguous
    assert dlpack.read(np.zeros((0, 3)).T.__dlpack__()).contiguous


def test_bfloat16_is_widened_exactly() -> None:
    values = np.array([1.0, -2.5, 3.140625, 0.0], np.float32)
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(
        on_host(upper.view(np.uint8), "bfloat16", (2, 2)).ravel(), values
    )
