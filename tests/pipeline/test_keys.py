"""What a change makes run again, and what it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

import trtbuild
from tests.pipeline import models
from trtbuild.cli import main
from trtbuild.recipe import Gates

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trtbuild.recipe import Recipe

    Change = Callable[[Recipe, Path], Recipe]

pytestmark = pytest.mark.rtx


LOWERED = ["cast", "cast", "build", "verify"]
"""What follows on a Q/DQ graph: FP16 around its pairs, in the network and in its twin."""


def nothing(recipe: Recipe, _: Path) -> Recipe:
    return recipe


def profile(recipe: Recipe, _: Path) -> Recipe:
    return models.with_profile(recipe, 1, 4, 16)


def target(recipe: Recipe, _: Path) -> Recipe:
    return models.with_targets(recipe, "tensorrt-rtx:sm_86")


def level(recipe: Recipe, _: Path) -> Recipe:
    build = msgspec.structs.replace(recipe.build, options={"optimization_level": 1})
    return msgspec.structs.replace(recipe, build=build)


def threshold(recipe: Recipe, _: Path) -> Recipe:
    return models.with_gates(recipe, Gates(max_drop=0.25, min_speedup=2.0))


def weights(recipe: Recipe, folder: Path) -> Recipe:
    models.classifier(folder / "model.onnx", seed=7)
    return recipe


def samples(recipe: Recipe, folder: Path) -> Recipe:
    models.data(folder / "data.npz", seed=9)
    return recipe


def same_extremes(recipe: Recipe, folder: Path) -> Recipe:
    """Two calibration samples change places: every threshold by minmax stays."""
    x = models.images(40)
    np.savez(folder / "data.npz", x=np.concatenate([x[1::-1], x[2:]]))
    return recipe


def evaluation(recipe: Recipe, folder: Path) -> Recipe:
    x = models.images(40)
    np.savez(folder / "data.npz", x=np.concatenate([x[:32], models.images(8, seed=5)]))
    return recipe


def method(recipe: Recipe, _: Path) -> Recipe:
    return models.with_quantization(recipe, method="mse")


def keep_float(recipe: Recipe, _: Path) -> Recipe:
    return models.with_quantization(recipe, keep_float=("head",))


def fp16(recipe: Recipe, _: Path) -> Recipe:
    return models.with_quantization(recipe, precision="fp16")


def moved(recipe: Recipe, folder: Path) -> Recipe:
    """The project lies in another folder."""
    other = folder / "elsewhere"
    other.mkdir()
    for name in ("model.onnx", "data.npz"):
        (other / name).write_bytes((folder / name).read_bytes())
    return msgspec.structs.replace(recipe, folder=other)


def renamed(recipe: Recipe, folder: Path) -> Recipe:
    """The model has another name, and is named from another folder."""
    (folder / "elsewhere").mkdir()
    (folder / "model.onnx").rename(folder / "elsewhere" / "other.onnx")
    source = msgspec.structs.replace(recipe.source, onnx="elsewhere/other.onnx")
    return msgspec.structs.replace(recipe, source=source)


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        (nothing, []),
        (profile, ["build"]),
        (target, ["build"]),
        (level, ["build"]),
        (threshold, []),
        (weights, ["export", "optimize", "calibrate", "quantize", "scan", *LOWERED]),
        (samples, ["calibrate", "quantize", "scan", *LOWERED]),
        (same_extremes, ["calibrate", "scan"]),
        (evaluation, ["verify"]),
        (method, ["quantize", *LOWERED]),
        (keep_float, ["quantize", *LOWERED]),
        (fp16, LOWERED),
        (moved, []),
        (renamed, []),
    ],
)
def test_a_change_runs_what_depends_on_it_and_nothing_else(
    change: Change, runs: list[str], tmp_path: Path
) -> None:
    """``verify`` is what a twin computes: another profile or GPU has the same graph."""
    recipe = models.recipe(tmp_path)
    first = trtbuild.build(recipe, tmp_path / "store")
    assert models.computed(first) == [
        *("export", "optimize", "calibrate", "quantize", "scan", *LOWERED)
    ]
    second = trtbuild.build(change(recipe, tmp_path), tmp_path / "store")
    assert models.computed(second) == runs
    assert second.full_cache_hit == (not runs)


def test_a_threshold_judges_what_was_measured_before(tmp_path: Path) -> None:
    # Under "auto" the budget decides what is quantized, too.
    recipe = models.with_metric(models.recipe(tmp_path))
    recipe = models.with_quantization(recipe, policy="all")
    loose = models.with_gates(recipe, Gates(max_drop=10.0))
    strict = models.with_gates(recipe, Gates(max_drop=0.0))
    first = trtbuild.build(loose, tmp_path / "store")
    assert (first.passed, first.exit_code) == (True, 0)
    second = trtbuild.build(strict, tmp_path / "store")
    assert models.computed(second) == []
    assert (second.passed, second.exit_code) == (False, 5)
    assert first.engines[0].verification.metrics == second.engines[0].verification.metrics


def test_why_names_the_field_in_which_two_engines_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = models.recipe(tmp_path)
    store = str(tmp_path / "store")
    first = trtbuild.build(recipe, store).engines[0].key
    for change, field in (
        (profile, "profiles"),
        (target, "target.arch"),
        (level, "optimization_level"),
        (method, "network_sha256"),
    ):
        second = trtbuild.build(change(recipe, tmp_path), store).engines[0].key
        monkeypatch.setattr(
            "sys.argv", ["trtbuild", "cache", "why", first, second, "--store", store]
        )
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 0
        assert field in capsys.readouterr().out, field
