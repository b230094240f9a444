"""Statistics of a stream: the values decide, never how they were cut or ordered."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.quantization.numpy_observer import NumpyObserver
from trtbuild.errors import StoreError
from trtbuild.quantization.observer import NotFiniteError, Observer, Observers
from trtbuild.quantization.ranges import (
    BINS,
    load_ranges,
    ranges_digest,
    save_ranges,
)

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.quantization.ranges import TensorStatistics

Floats = npt.NDArray[Any]

ANY_FLOATS = hnp.arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def observe(*arrays: Floats) -> TensorStatistics:
    observer = Observer()
    for array in arrays:
        observer.update(array)
    return observer.statistics()


@settings(max_examples=200)
@given(values=ANY_FLOATS, data=st.data())
def test_any_cut_and_any_order_give_the_same_bits(values: Floats, data: st.DataObject) -> None:
    whole = observe(values)
    shuffled = values[np.array(data.draw(st.permutations(range(len(values)))))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=5)))
    pieces = observe(*np.split(shuffled, cuts))
    assert ranges_digest({"t": whole}) == ranges_digest({"t": pieces})


@settings(max_examples=200)
@given(data=st.data(), dtype=st.sampled_from([np.float16, np.float32, np.float64]))
def test_the_compiled_loop_counts_as_numpy_does(data: st.DataObject, dtype: type[Any]) -> None:
    """Denormal numbers, zeros of both signs and the largest ones included; ranges that grow."""
    elements = hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False)
    arrays = data.draw(
        st.lists(
            hnp.arrays(dtype, st.integers(1, 40), elements=elements), min_size=1, max_size=4
        )
    )
    reference = NumpyObserver()
    for array in arrays:
        reference.update(array)
    assert ranges_digest({"t": observe(*arrays)}) == ranges_digest(
        {"t": reference.statistics()}
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_threads_count_as_one_loop_does(dtype: type[Any]) -> None:
    """Several pieces of several tensors, each with its own range, none of whole blocks."""
    random = np.random.default_rng(0)
    sizes = {"a": 900_001, "b": 300_003, "c": 7}
    arrays = {n: (random.standard_normal(s) * s).astype(np.float32) for n, s in sizes.items()}
    arrays = {name: (array / 1e5).astype(dtype) for name, array in arrays.items()}
    observers = Observers({})
    reference = {name: NumpyObserver() for name in sizes}
    for _ in range(3):
        observers.update(arrays)
        for name, array in arrays.items():
            reference[name].update(array)
        arrays = {name: array[::-1] * dtype(3) for name, array in arrays.items()}
    expected = {name: each.statistics() for name, each in reference.items()}
    assert ranges_digest(observers.statistics()) == ranges_digest(expected)
    again = Observers(observers.statistics())
    again.update({"a": arrays["a"], "d": arrays["b"]})
    reference["a"].update(arrays["a"])
    assert ranges_digest({"a": again.statistics()["a"]}) == ranges_digest(
        {"a": reference["a"].statistics()}
    )
    assert list(again.statistics()) == ["a", "b", "c", "d"]


def test_the_first_tensor_that_is_not_finite_is_named() -> None:
    arrays = {name: np.ones(400_000, np.float32) for name in "abc"}
    arrays["b"][-1], arrays["c"][:] = np.inf, np.nan
    with pytest.raises(NotFiniteError, match="0 NaN and 1 infinite") as caught:
        Observers({}).update(arrays)
    assert caught.value.tensor == "b"


def test_a_damaged_cache_of_compiled_code_costs_time_only(tmp_path: Path) -> None:
    """In a child, which compiles, damages what it wrote, and compiles again."""
    code = """
import pathlib, sys, numpy as np
from trtbuild.quantization import kernel
dtype = np.dtype(np.float32)
kernel._loop(dtype)
written = list(pathlib.Path(sys.argv[1]).rglob("*.nb?"))
for path in written:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
kernel._loop.cache_clear()
counts = np.zeros(kernel.BINS, np.int64)
print(len(written), kernel.accumulate(np.array([-1, 3], dtype), counts, 0), counts.sum())
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["2", "(True,", "2,", "-1.0,", "3.0)", "2"]


@settings(max_examples=200)
@given(values=ANY_FLOATS)
def test_the_histogram_is_that_of_the_magnitudes(values: Floats) -> None:
    found = observe(values)
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    assert found.counts.sum() == values.size
    magnitudes = np.abs(values.astype(np.float64))
    if found.amax == 0:
        assert found.counts[0] == values.size
        return
    # The smallest power of two above every magnitude.
    assert math.ldexp(0.5, found.exponent) <= found.amax < math.ldexp(1.0, found.exponent)
    limit = math.ldexp(1.0, found.exponent)
    expected, edges = np.histogram(magnitudes / limit, bins=BINS, range=(0.0, 1.0))
    np.testing.assert_array_equal(found.counts, expected)
    assert found.width == edges[1] * limit


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_floating_type_gives_the_statistics_of_its_values(dtype: type[Any]) -> None:
    values = np.random.default_rng(0).standard_normal((3, 1000)).astype(dtype)
    wide = observe(values.astype(np.float64))
    assert ranges_digest({"t": observe(values)}) == ranges_digest({"t": wide})


@pytest.mark.parametrize("scale", [1e-300, 1e-45, 1e-38, 1.0, 3e38, 1e300])
def test_tiny_and_huge_values_are_counted(scale: float) -> None:
    values = scale * np.array([0.0, 1.0, -0.7, 0.3])
    found = observe(values[:2], values[2:])
    assert found.counts.sum() == 4
    assert found.amax == scale
    assert np.flatnonzero(found.counts)[-1] * found.width <= scale


def test_zeros_of_both_signs_are_one_value_and_nothing_else_is_needed() -> None:
    digests = {
        ranges_digest({"t": observe(np.array(values, np.float32))})
        for values in ([0.0, -0.0], [-0.0, 0.0])
    }
    assert len(digests) == 1
    assert observe(np.zeros(5)).counts[0] == 5
    with pytest.raises(ValueError, match="no values"):
        observe(np.zeros(0))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_not_finite_is_refused_with_counts(dtype: type[Any]) -> None:
    values = np.array([1, np.nan, np.inf, -np.inf, np.nan, 2, np.nan], dtype)
    with pytest.raises(NotFiniteError, match="3 NaN and 2 infinite"):
        observe(values)


def test_values_beyond_a_piece_are_counted_too() -> None:
    values = np.random.default_rng(1).standard_normal((1 << 20) + 5).astype(np.float32)
    assert observe(values).counts.sum() == values.size


def test_saved_ranges_are_loaded_as_they_were(tmp_path: Path) -> None:
    ranges = {
        "b/ü": observe(np.array([1e-45, 3e38], np.float32)),
        "a": observe(np.zeros(3)),
        "c": observe(np.random.default_rng(0).standard_normal(100)),
    }
    save_ranges(ranges, tmp_path / "r.npz")
    assert ranges_digest(load_ranges(tmp_path / "r.npz")) == ranges_digest(ranges)
    assert ranges_digest(ranges) == ranges_digest(dict(reversed(ranges.items())))
    save_ranges({}, tmp_path / "none.npz")
    assert load_ranges(tmp_path / "none.npz") == {}


def test_a_damaged_file_of_ranges_is_a_store_error(tmp_path: Path) -> None:
    save_ranges({"a": observe(np.arange(9.0))}, tmp_path / "good.npz")
    whole = (tmp_path / "good.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "good.npz") as good:
        start = good.getinfo("counts.npy").header_offset
    flipped = bytearray(whole)
    flipped[start + 80] ^= 0xFF
    path = tmp_path / "bad.npz"
    for content in (b"", b"text", whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(StoreError, match="Calibrate again"):
            load_ranges(path)
    np.savez_compressed(path, names=np.array(["a"]), extremes=np.zeros((2, 2)))
    with zipfile.ZipFile(path, "a") as archive, zipfile.ZipFile(tmp_path / "good.npz") as good:
        for name in ("counts.npy", "exponents.npy"):
            archive.writestr(name, good.read(name))
    with pytest.raises(StoreError, match="shapes"):
        load_ranges(path)
