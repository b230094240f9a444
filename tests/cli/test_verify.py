"""``trtbuild verify``: an engine of the store, measured anew against its framework."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import command
from tests.pipeline import models
from trtbuild.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.running import Done

    Run = Callable[..., Done]

RECIPE = """
[source]
onnx = "model.onnx"
[quantization]
precision = "int8"
provider = "provider.py"
method = "minmax"
[build]
targets = ["tensorrt-rtx:sm_89"]
[gates]
max_drop = 1.0
"""

pytestmark = pytest.mark.rtx


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    models.with_metric(models.recipe(tmp_path))
    (tmp_path / "small.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRTBUILD_STORE", str(tmp_path / "store"))
    return functools.partial(command, monkeypatch, capfd)


def built(run: Run, *arguments: str) -> str:
    done = run("engine", *arguments, "--json")
    assert done.code == 0, done.err
    return str(done.document["engines"][0]["sha256"])


def test_an_engine_of_a_recipe_is_measured_again_from_anywhere(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = built(run, "small.toml")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = run("verify", engine[:12], "--json")
    assert done.code == 0, done.err
    stages = {stage["name"].split()[0]: stage["cached"] for stage in done.document["stages"]}
    assert stages["calibrate"]
    assert stages["quantize"]
    assert not stages["verify"]
    assert done.document["engines"][0]["sha256"] == engine
    (tmp_path / "small.toml").write_text(RECIPE.replace("1.0", "0.0"))
    strict = run("verify", engine, "--recipe", tmp_path / "small.toml")
    assert strict.code == 5
    assert "FAILED" in strict.out


def test_an_engine_of_the_command_line_is_measured_again(run: Run) -> None:
    options = ("--precision", "int8", "--method", "minmax", "--calibration", "data.npz")
    engine = built(run, "model.onnx", *options, "--arch", "sm_89")
    path = run("verify", engine, "--json").document["engines"][0]["path"]
    done = run("verify", path, "--markdown", "report.md")
    assert done.code == 0, done.err
    assert engine[:8] in Path("report.md").read_text()


def test_a_model_that_is_another_now_is_refused(run: Run) -> None:
    engine = built(run, "small.toml")
    models.classifier(Path("model.onnx"), seed=5)
    done = run("verify", engine)
    assert (done.code, done.out) == (6, "")
    assert "have changed since" in done.message


def test_a_recipe_of_another_precision_is_refused(run: Run) -> None:
    engine = built(run, "small.toml")
    Path("other.toml").write_text(RECIPE.replace("int8", "fp16"))
    done = run("verify", engine, "--recipe", "other.toml")
    assert (done.code, done.out) == (2, "")
    assert "int8" in done.message
    assert "fp16" in done.message


@pytest.mark.parametrize("name", ["deadbeefdeadbeef", "zz", "gone.engine", "0" * 64])
def test_an_unknown_engine_is_told(name: str, run: Run) -> None:
    Store.open("")
    done = run("verify", name)
    assert (done.code, done.out) == (2, "")
    assert "names nothing" in done.message
    assert "cache ls" in done.message


def test_an_engine_that_was_built_beside_others_is_measured_alone(
    run: Run, tmp_path: Path
) -> None:
    both = RECIPE.replace('["tensorrt-rtx:sm_89"]', '["onnxruntime", "tensorrt-rtx:sm_89"]')
    (tmp_path / "small.toml").write_text(both)
    done = run("engine", "small.toml", "--json")
    assert done.code == 0, done.err
    for engine in done.document["engines"]:
        again = run("verify", engine["sha256"][:12], "--json")
        assert again.code == 0, again.err
        assert again.document["engines"][0]["sha256"] == engine["sha256"]
