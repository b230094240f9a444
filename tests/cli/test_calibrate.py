"""``trtbuild calibrate``: ranges that are what the tensors hold."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.cli.running import command
from tests.pipeline import models
from trtbuild.quantization.ranges import load_ranges, ranges_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.running import Done

    Run = Callable[..., Done]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    models.classifier(tmp_path / "model.onnx")
    models.data(tmp_path / "data.npz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRTBUILD_STORE", str(tmp_path / "store"))
    return functools.partial(command, monkeypatch, capfd)


def test_the_range_of_an_input_is_that_of_four_fifths_of_its_data(run: Run) -> None:
    options = ("--calibration", "data.npz")
    done = run("calibrate", "model.onnx", *options, "--out", "new/ranges.npz", "--json")
    assert done.code == 0, done.err
    (row,) = [row for row in done.document["tensors"] if row["tensor"] == "x"]
    x = models.images(40)[:32]
    assert row["minimum"] == pytest.approx(float(x.min()))
    assert row["maximum"] == pytest.approx(float(x.max()))
    assert row["thresholds"]["minmax"] == pytest.approx(float(np.abs(x).max()))
    assert ranges_digest(load_ranges(Path("new/ranges.npz"))) == done.document["sha256"]

    again = run("calibrate", "model.onnx", *options)
    assert again.code == 0
    assert done.document["sha256"][:12] in again.out
    assert "samples" not in again.err


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ((), "--calibration"),
        (("--calibration", "gone.npz"), "gone.npz"),
        (("--calibration", "data.npz", "--out", "data.npz/x"), "--out"),
        (("--calibration", "data.npz", "--shape", "z:1x3x16x16"), "z"),
    ],
)
def test_a_call_that_cannot_work_is_refused(
    options: tuple[str, ...], part: str, run: Run
) -> None:
    done = run("calibrate", "model.onnx", *options)
    assert (done.code, done.out) == (2, "")
    assert part in done.message


def test_a_cache_is_written_for_tensorrt_8_and_tells_what_it_covers(run: Run) -> None:
    options = ("--calibration", "data.npz", "--method", "mse")
    done = run("calibrate", "model.onnx", *options, "--to-trt-cache", "new/m.cache")
    assert done.code == 0, done.err
    assert "TRT-8601-EntropyCalibration2, 9 scales by mse" in done.out
    assert Path("new/m.cache").read_text().startswith("TRT-8601-EntropyCalibration2\nx: 3")

    shown = run("calibrate", "model.onnx", "--from-trt-cache", "new/m.cache", "--json")
    assert shown.code == 0, shown.err
    rtx = next(s for s in shown.document["schemes"] if "tensorrt-rtx" in s["backends"])
    assert [match["tensor"] for match in rtx["coverage"]["matches"]] == ["x", "r0", "flat"]


def test_a_cache_that_is_too_little_is_shown_and_refused(run: Run) -> None:
    Path("m.cache").write_text("TRT-8601-EntropyCalibration2\nx: 3cfdbad3\nr_0: 3cfdbad3\n")
    done = run("calibrate", "model.onnx", "--from-trt-cache", "m.cache")
    assert done.code == 2
    assert "MISSING; entries like it: r_0" in done.out
    assert "'r_0' fits no tensor of the model; tensors like it: r0" in done.out
    assert "incomplete for every backend" in done.message
    filled = ("--calibration", "data.npz")
    assert run("calibrate", "model.onnx", "--from-trt-cache", "m.cache", *filled).code == 0
    engine = run("engine", "model.onnx", "--from-trt-cache", "m.cache", "--arch", "sm_89")
    assert (engine.code, engine.out) == (2, "")
    assert "'r0' (entries like it: r_0)" in engine.message


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--to-trt-cache", "c"), "--calibration"),
        (("--to-trt-cache", "c", "--calibration", "data.npz", "--method", "auto"), "mse"),
        (
            ("--to-trt-cache", "c", "--calibration", "data.npz", "--trt-version", "11.0.0"),
            "11.0.0",
        ),
        (("--to-trt-cache", "c", "--from-trt-cache", "c"), "different jobs"),
        (("--from-trt-cache", "gone.cache"), "gone.cache"),
        (("--from-trt-cache", "data.npz"), "data.npz"),
    ],
)
def test_a_call_for_a_cache_that_cannot_work_is_refused(
    options: tuple[str, ...], part: str, run: Run
) -> None:
    done = run("calibrate", "model.onnx", *options)
    assert (done.code, done.out) == (2, "")
    assert part in done.message


def test_an_engine_from_a_cache_is_int8_and_nothing_else(run: Run) -> None:
    Path("m.cache").write_text("TRT-8601-EntropyCalibration2\nx: 3cfdbad3\n")
    done = run("engine", "model.onnx", "--from-trt-cache", "m.cache", "--precision", "fp16")
    assert done.code == 2
    assert "--precision int8" in done.message
