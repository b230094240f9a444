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
