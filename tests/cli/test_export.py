"""``trtbuild export``: the graph in a file of one's own."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.cli.running import command
from tests.pipeline import models

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.running import Done

    Run = Callable[..., Done]

FACTORY = """
import torch

def model():
    print("building the network")
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
"""

PROVIDER = """
import numpy as np

def calibration_batches():
    yield {"input": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype("f")}

evaluation_batches = calibration_batches
"""


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    models.classifier(tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return functools.partial(command, monkeypatch, capfd)


def test_an_onnx_file_is_exported_as_it_is(run: Run) -> None:
    done = run("export", "model.onnx", "--out", "new/copy.onnx", "--json")
    assert done.code == 0, done.err
    assert done.document["path"] == "new/copy.onnx"
    assert done.document["inputs"][0]["shape"] == ["batch", 3, 16, 16]
    assert done.document["parity"] is None
    x = {"x": models.images(2)}
    before, after = (
        ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, x)[0]
        for path in ("model.onnx", "new/copy.onnx")
    )
    np.testing.assert_array_equal(before, after)
    lines = run("export", "model.onnx", "--out", "copy.onnx").out.splitlines()
    assert lines[0].startswith("copy.onnx  sha256 ")
    assert lines[1] == "  input x float32 [batch, 3, 16, 16]"


@pytest.mark.parametrize("out", [(), ("--out", "model.onnx"), ("-o", "./link.onnx")])
def test_the_model_itself_is_never_written_over(out: tuple[str, ...], run: Run) -> None:
    Path("link.onnx").symlink_to("model.onnx")
    before = Path("model.onnx").read_bytes()
    done = run("export", "model.onnx", *out)
    assert (done.code, done.out) == (2, "")
    assert "model itself" in done.message
    assert Path("model.onnx").read_bytes() == before


@pytest.mark.parametrize("out", ["model.onnx/x.onnx", "/proc/x/y.onnx", "."])
def test_a_file_that_cannot_be_written_is_told(out: str, run: Run) -> None:
    done = run("export", "model.onnx", "--out", out)
    assert (done.code, done.out) == (2, "")
    assert "--out" in done.message


def test_an_old_file_whose_initializers_are_no_inputs_is_taken(run: Run) -> None:
    """The light models of the onnx package, after somebody put real weights in."""
    model = onnx.load("model.onnx")
    model.ir_version = 3
    onnx.save(model, "old.onnx")
    done = run("export", "old.onnx", "--out", "modern.onnx")
    assert done.code == 0, done.err
    assert onnx.load("modern.onnx").ir_version >= 4
    onnx.checker.check_model("modern.onnx", full_check=True)


@pytest.mark.frameworks
def test_a_factory_is_exported_and_compared_though_it_prints(run: Run) -> None:
    Path("net.py").write_text(FACTORY)
    Path("data.py").write_text(PROVIDER)
    done = run("export", "net.py:model", "--calibration", "data.py", "--json")
    assert done.code == 0, done.err
    assert done.document["path"] == "net.onnx"
    rows = done.document["parity"]["outputs"]
    assert rows
    assert all(row["max_abs"] < 1e-4 for row in rows)
    assert "building the network" in done.err
