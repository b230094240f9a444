"""Calibration caches: read as TensorRT writes them, refused where they are not whole."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtbuild.errors import DataError, UsageError
from trtbuild.quantization.codes import symmetric_grid
from trtbuild.quantization.trt_cache import (
    TrtCache,
    amax_of,
    header_version,
    read_cache,
    scale_of,
    write_cache,
)

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = """TRT-8510-EntropyCalibration2
x: 4000890a
/conv1/Conv_output_0: 3f9db09c
onnx::Conv_123: 3c010204
two words: 3c010204
(Unnamed Layer* 8) [Constant]_output: 39137939
dead: 0
/fc1/Gemm_output_0: 3e5312f6
"""
"""Names of each kind that TensorRT 8.5 writes; the digits are of a published cache."""


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "model.cache"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_cache_is_read_with_every_kind_of_name(tmp_path: Path) -> None:
    cache = read_cache(written(tmp_path, WHOLE))
    assert (cache.version, cache.algorithm) == ("8510", "EntropyCalibration2")
    assert list(cache.scales) == [
        "x",
        "/conv1/Conv_output_0",
        "onnx::Conv_123",
        "two words",
        "(Unnamed Layer* 8) [Constant]_output",
        "dead",
        "/fc1/Gemm_output_0",
    ]
    assert cache.scales["x"] == struct.unpack(">f", bytes.fromhex("4000890a"))[0]
    # 1 / 127: an input in [0, 1].
    assert amax_of(cache.scales["onnx::Conv_123"]) == pytest.approx(1.0, rel=1e-6)
    assert cache.scales["dead"] == 0.0


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (WHOLE.replace("\n", "\r\n"), "utf-8"),
        (WHOLE, "utf-8-sig"),
        (WHOLE.rstrip(), "utf-8"),
        (WHOLE.replace("4000890a", "4000890A  "), "utf-8"),
        (WHOLE.replace("x: 4", "\nx : 4"), "utf-8"),
        (WHOLE + "x: 4000890a\n", "utf-8"),
    ],
    ids=["CRLF", "mark", "no last newline", "upper case", "blanks", "same entry twice"],
)
def test_what_editors_do_to_a_cache_does_not_matter(
    text: str, encoding: str, tmp_path: Path
) -> None:
    expected = read_cache(written(tmp_path, WHOLE))
    got = read_cache(written(tmp_path, text, encoding))
    assert got == expected
    assert got.sha256 == expected.sha256


@pytest.mark.parametrize(
    "header",
    [
        "TRT-7103-EntropyCalibration",
        "TRT-8601-MinMaxCalibration",
        "TRT-5105-LegacyCalibration",
        "TRT-100300-EntropyCalibration2",
        "TRT-8XXX-EntropyCalibration2",
    ],
)
def test_headers_of_all_releases_and_calibrators_are_read_and_kept(
    header: str, tmp_path: Path
) -> None:
    assert read_cache(written(tmp_path, f"{header}\nx: 3c010204\n")).header == header


REFUSED = {
    "cut in a number": (WHOLE[:-4], "line 8"),
    "cut in a name": (WHOLE[:-20], "line 8"),
    "a decimal number": (WHOLE + "y: 0.0078\n", "decimal"),
    "two scales": (WHOLE + "x: 3c010204\n", "line 9"),
    "not a number": (WHOLE + "y: 7fc00000\n", "nan"),
    "infinite": (WHOLE + "y: 7f800000\n", "inf"),
    "negative": (WHOLE + "y: bc010204\n", "-0.007"),
    "no tensors": ("TRT-8601-EntropyCalibration2\n", "no tensors"),
    "empty": ("", "no TensorRT calibration cache"),
    "another file": ('{"scales": {}}', "no TensorRT calibration cache"),
    "another algorithm": ("TRT-8601-Other\nx: 3c010204\n", "TRT-8601-Other"),
}


@pytest.mark.parametrize(("text", "part"), REFUSED.values(), ids=list(REFUSED))
def test_a_cache_that_is_not_whole_is_refused_with_the_reason(
    text: str, part: str, tmp_path: Path
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=r"model\.cache") as refused:
        read_cache(path)
    assert part in str(refused.value)


def test_an_engine_is_no_cache_and_a_missing_file_neither(tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"ptrt\x80\xff\xfe\0\1")
    with pytest.raises(DataError, match="it is no text"):
        read_cache(tmp_path / "model.engine")
    with pytest.raises(DataError, match="Give its path"):
        read_cache(tmp_path / "gone.cache")


@settings(max_examples=50, deadline=None)
@given(bits=st.lists(st.integers(0, 0x7F7FFFFF), min_size=1, max_size=20))
def test_writing_and_reading_gives_the_same_bits(
    bits: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    scales = {
        f"t: {i}": struct.unpack(">f", struct.pack(">I", each))[0]
        for i, each in enumerate(bits)
    }
    cache = TrtCache(version="8601", algorithm="MinMaxCalibration", scales=scales)
    path = tmp_path_factory.mktemp("round") / "trip.cache"
    write_cache(cache, path)
    assert read_cache(path) == cache
    again = path.with_name("again.cache")
    write_cache(read_cache(path), again)
    assert again.read_bytes() == path.read_bytes()


@settings(max_examples=200, deadline=None)
@given(amax=st.floats(1e-20, 1e20))
def test_the_scale_of_a_cache_is_the_scale_of_the_network_to_the_last_bit(
    amax: float,
) -> None:
    direct = symmetric_grid(np.asarray(amax)).scale
    through = symmetric_grid(np.asarray(amax_of(scale_of(amax)))).scale
    assert through.tobytes() == direct.tobytes()


@pytest.mark.parametrize(
    ("release", "number"),
    [("8.6.1", "8601"), ("7.1.3", "7103"), ("8.5.10", "8510"), ("10.13.0", "101300")],
)
def test_a_header_names_a_release_as_tensorrt_does(release: str, number: str) -> None:
    assert header_version(release) == number


@pytest.mark.parametrize("release", ["11.0.0", "8.6", "8601", "3.0.1", "word"])
def test_a_release_without_calibrators_is_refused(release: str) -> None:
    with pytest.raises(UsageError, match="calibrators"):
        header_version(release)
