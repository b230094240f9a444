"""Numbers of 8 and 4 bits, and weights in blocks of them, against other implementations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest

from trtbuild.quantization import formats
from trtbuild.quantization.blocks import block_size, blocks_of
from trtbuild.quantization.codes import fp8_codes, fp8_grid
from trtbuild.quantization.formats import E2M1, E4M3
from trtbuild.quantization.fp8 import fp8_amax
from trtbuild.quantization.observer import Observer

if TYPE_CHECKING:
    from tests.graph.models import Array
    from trtbuild.quantization.blocks import BlockFormat
    from trtbuild.quantization.formats import Minifloat


def every(kind: Minifloat) -> Array:
    """Return every finite number of a format, as ml_dtypes reads its codes, in order."""
    codes = np.arange(256 if kind is E4M3 else 16, dtype=np.uint8)
    values = codes.view(kind.dtype).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


@pytest.mark.parametrize(("kind", "count"), [(E4M3, 253), (E2M1, 15)], ids=["e4m3", "e2m1"])
def test_the_nearest_number_is_that_of_ml_dtypes_at_every_number_tie_and_neighbor(
    kind: Minifloat, count: int
) -> None:
    values = every(kind)
    assert len(values) == count
    assert values[-1] == kind.largest
    ties = np.asarray((values[1:] + values[:-1]) / 2, np.float32)
    around = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    # ml_dtypes converts through float32, which would round neighbors in float64 to the tie.
    tried = np.concatenate([values.astype(np.float32), ties, *around])
    np.testing.assert_array_equal(
        kind.nearest(tried), tried.astype(kind.dtype).astype(np.float64)
    )
    assert kind.nearest(np.array([1e30, -1e30])).tolist() == [kind.largest, -kind.largest]


def test_rounded_scales_are_numbers_of_the_type_and_never_smaller() -> None:
    scales = np.exp(np.linspace(-12, 10, 5000))
    for rest, kind in (("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        found = formats.rounded_up(scales, "fp16" if rest == "fp16" else "bf16")
        assert (found >= scales.astype(np.float32)).all()
        np.testing.assert_array_equal(found.astype(kind).astype(np.float32), found)
    beyond = np.array([1e-9, 1e6])
    assert not formats.is_exact(formats.rounded_up(beyond, "fp16"), "fp16")
    np.testing.assert_array_equal(formats.rounded_up(beyond, "fp16"), beyond.astype(np.float32))


def weight(inner: int = 256, outer: int = 48) -> Array:
    """Return a matrix with heavy tails, a column of zeros and one of tiny numbers."""
    found = np.random.default_rng(0).standard_t(4, (inner, outer)).astype(np.float32) / 20
    found[:, 3] = 0
    found[:, 5] *= 1e-9
    return found


def plain(matrix: Array, block: int, levels: float) -> Array:
    """Return the matrix rounded to integers of a scale by the largest magnitude of a block."""
    amax = np.abs(matrix.reshape(-1, block, matrix.shape[1])).max(axis=1)
    scale = np.repeat(np.where(amax > 0, amax / levels, 1), block, axis=0)
    return np.asarray(np.rint(matrix / scale) * scale)


@pytest.mark.parametrize(("kind", "block"), [("int4", 64), ("nvfp4", 16), ("mxfp4", 32)])
def test_blocks_hold_codes_of_their_format_and_scales_that_fp16_has(
    kind: BlockFormat, block: int
) -> None:
    matrix = weight()
    found = blocks_of(matrix, kind, block, "fp16")
    scales = np.repeat(found.scales, block, axis=0)
    back = found.codes.astype(np.float32) * scales
    np.testing.assert_array_equal(found.scales.astype(np.float16), found.scales)
    assert (back[:, 3] == 0).all()
    if kind == "int4":
        assert found.codes.astype(np.int8).min() >= -8
        gain = (
            np.square(matrix - plain(matrix, block, 7)).sum() / np.square(matrix - back).sum()
        )
        assert gain > 1.1  # the search clips outliers where that is better
    else:
        np.testing.assert_array_equal(back.astype(np.float16).astype(np.float32), back)
        nearest = E2M1.nearest(matrix / scales)
        np.testing.assert_array_equal(found.codes.astype(np.float64), nearest)
    if kind == "mxfp4":
        np.testing.assert_array_equal(np.frexp(found.scales)[0], 0.5)
    if kind == "nvfp4":
        assert found.scale_codes is not None
        assert found.unit is not None
        assert found.scale_codes.dtype == ml_dtypes.float8_e4m3fn
        np.testing.assert_array_equal(
            found.scale_codes.astype(np.float32) * found.unit, found.scales
        )


def test_a_block_is_the_largest_that_divides() -> None:
    assert [block_size(n, "int4", 128) for n in (384, 320, 96, 80)] == [128, 64, 32, 0]
    assert block_size(384, "int4", 64) == 64
    assert [block_size(n, "nvfp4", 128) for n in (80, 24)] == [16, 0]
    assert [block_size(n, "mxfp4", 128) for n in (96, 80)] == [32, 0]


def test_fp8_weights_fill_the_range_of_each_channel() -> None:
    matrix = weight()
    amax = np.abs(matrix).max(axis=0).astype(np.float64)
    grid = fp8_grid(amax, "fp32")
    codes = fp8_codes(matrix, grid, 1).astype(np.float64)
    assert np.abs(codes).max(axis=0)[[0, 5]].tolist() == [448, 448]
    relative = np.abs(codes * grid.scale - matrix) / amax.clip(1e-30)
    assert relative.max() < 2**-4


def test_the_threshold_of_least_error_for_fp8_is_that_of_e4m3_and_not_of_equal_steps() -> None:
    """A lone outlier costs FP8 almost nothing: its steps are relative."""
    values = np.append(np.random.default_rng(1).standard_normal(20000), 60.0)
    observer = Observer()
    observer.update(values.astype(np.float32))
    statistics = observer.statistics()
    chosen = fp8_amax(statistics, "mse")
    assert chosen > 30
    errors = {}
    for amax in (chosen, 4.0, 2.0):
        scale = amax / 448
        ours = np.clip(values / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        errors[amax] = np.square(values - ours.astype(np.float64) * scale).sum()
    assert errors[chosen] == min(errors.values())
