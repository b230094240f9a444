"""Two models of one name, or one model in two precisions, are no releases of each other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import trtbuild
from tests.pipeline import models
from tests.trust.commands import run, works


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, part in (
        ("TRTBUILD_STORE", "store"),
        ("TRTBUILD_STATE", "state"),
        ("XDG_CONFIG_HOME", "config"),
    ):
        monkeypatch.setenv(name, str(tmp_path / part))
    monkeypatch.chdir(tmp_path)
    run("keys", "generate", "nightly", "--use")
    run("keys", "trust", "nightly")
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        models.classifier(tmp_path / name / "model.onnx", seed=seed)
    models.data(tmp_path / "data.npz")
    return tmp_path


def built(source: str, *options: str) -> str:
    arguments = ("engine", source, "--backend", "onnxruntime", "--json", "-q", *options)
    return str(json.loads(run(*arguments))["engines"][0]["sha256"])


@pytest.mark.usefixtures("folder")
def test_two_models_of_one_name_are_not_locked_in_silence() -> None:
    first = built("a/model.onnx", "--precision", "fp32")
    second = built("b/model.onnx", "--precision", "fp32")
    message = run("lock", code=2)
    assert "two engines are called 'model'" in message
    assert "a/model.onnx" in message
    assert "b/model.onnx" in message
    assert not Path("engines.lock").exists()
    run("lock", first)
    assert first in Path("engines.lock").read_text()
    told = run("lock")
    assert "REFUSED model on" in told
    assert second[:12] in told
    assert first in Path("engines.lock").read_text(), "what is pinned stays"
    assert works(trtbuild.load("model", lock="engines.lock"))
    run("lock", second)
    assert second in Path("engines.lock").read_text()


def test_a_model_that_was_trained_on_follows_the_one_before(folder: Path) -> None:
    first = built("a/model.onnx", "--precision", "fp32")
    run("lock")
    shutil.copy(folder / "b" / "model.onnx", folder / "a" / "model.onnx")
    second = built("a/model.onnx", "--precision", "fp32")
    run("promote", second, "--key", "nightly")
    run("lock")
    text = Path("engines.lock").read_text()
    assert second in text
    assert first not in text
    for _ in range(3):  # in one second, each is a number later
        run("promote", first, "--key", "nightly")
    assert works(trtbuild.load(first))
    told = run("lock")
    assert first in Path("engines.lock").read_text(), "to go back is a newer release"
    assert "REFUSED" not in told, "what was left on purpose is no news, though it is younger"


@pytest.mark.usefixtures("folder")
def test_precisions_of_one_model_overtake_each_other_nowhere() -> None:
    plain = built("a/model.onnx", "--precision", "fp32")
    given = ("--precision", "int8", "--calibration", "data.npz", "--method", "minmax")
    quantized = built("a/model.onnx", *given)
    run("promote", quantized, "--key", "nightly")
    assert works(trtbuild.load(plain))
    assert works(trtbuild.load(quantized))
    assert works(trtbuild.load(plain)), "the newer one is no release of this one"
    message = run("lock", code=2)
    assert "fp32 of onnx a/model.onnx" in message
    assert "int8 of onnx a/model.onnx" in message
