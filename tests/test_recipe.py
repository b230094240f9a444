"""Recipes: read strictly, and every mistake is named before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from trtbuild.engine import ShapeRange
from trtbuild.errors import RecipeError
from trtbuild.recipe import (
    Build,
    Gates,
    Profile,
    Quantization,
    Recipe,
    Source,
    load_recipe,
    profile_table,
)

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = """
[source]
torch = "calibration/digits.py:model"
[quantization]
precision = "int8"
provider = "calibration/digits.py"
method = "percentile"
keep_float = ["/fc/*"]
[build]
targets = ["onnxruntime", "tensorrt-rtx:sm_89"]
options = { optimization_level = 5 }
[build.profiles.images]
min = [1, 1, 32, 32]
opt = [32, 1, 32, 32]
max = [256, 1, 32, 32]
[gates]
max_drop = 0.005
min_speedup = 1
[limits]
build_seconds = 60
"""

MISTAKES = {
    "no source": ("[build]\ntargets = []", ("source",)),
    "two sources": ('[source]\nonnx = "a"\ntorch = "b"', ("[source]", "onnx, torch")),
    "no model": ("[source]", ("[source]", "exactly one")),
    "unknown table": ('[source]\nonnx = "a"\n[gate]\nx = 1', ("gate",)),
    "unknown key": ('[source]\nonnx = "a"\n[gates]\nmax_dorp = 1', ("[gates]", "max_dorp")),
    "text for a number": ('[source]\nonnx = "a"\n[gates]\nmax_drop = "0.1"', ("max_drop",)),
    "infinite drop": ('[source]\nonnx = "a"\n[gates]\nmax_drop = inf', ("max_drop", "<= 1")),
    "negative drop": ('[source]\nonnx = "a"\n[gates]\nmax_drop = -0.1', ("max_drop", ">= 0")),
    "int8 without data": (
        '[source]\nonnx = "a"\n[quantization]\nprecision = "int8"',
        ("[quantization]", "calibration data"),
    ),
    "precision of a later version": (
        '[source]\nonnx = "a"\n[quantization]\nprecision = "tf32"',
        ("[quantization]", "'tf32'", "not built by this version"),
    ),
    "no such precision": (
        '[source]\nonnx = "a"\n[quantization]\nprecision = "int9"',
        ("[quantization] precision", "int9"),
    ),
    "profile out of order": (
        '[source]\nonnx = "a"\n[build.profiles.x]\nmin = [2]\nopt = [1]\nmax = [4]',
        ("'x'", "min <= opt <= max"),
    ),
    "profile of two ranks": (
        '[source]\nonnx = "a"\n[build.profiles.x]\nmin = [2]\nopt = [2, 2]\nmax = [4]',
        ("'x'", "one rank"),
    ),
    "a float as builder setting": (
        '[source]\nonnx = "a"\n[build]\noptions = { level = 0.5 }',
        ("[build] options",),
    ),
    "no TOML": ("[source", ("not valid TOML",)),
}


def test_a_whole_recipe_is_read(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    engines.mkdir()
    path = engines / "digits-int8.toml"
    path.write_text(WHOLE)
    recipe = load_recipe(path)
    assert recipe.name == "digits-int8"
    assert recipe.folder == tmp_path
    assert recipe.source == Source(torch="calibration/digits.py:model")
    assert (recipe.source.framework, recipe.source.location) == (
        "torch",
        "calibration/digits.py:model",
    )
    assert recipe.quantization == Quantization(
        precision="int8",
        provider="calibration/digits.py",
        method="percentile",
        keep_float=("/fc/*",),
    )
    images = Profile(min=(1, 1, 32, 32), opt=(32, 1, 32, 32), max=(256, 1, 32, 32))
    assert recipe.build == Build(
        targets=("onnxruntime", "tensorrt-rtx:sm_89"),
        profiles={"images": images},
        options={"optimization_level": 5},
    )
    assert recipe.build.shape_ranges() == (
        ShapeRange(input="images", min=images.min, opt=images.opt, max=images.max),
    )
    assert recipe.gates == Gates(max_drop=0.005, min_speedup=1.0)
    assert recipe.limits.build_seconds == 60


def test_paths_start_from_the_recipes_own_folder_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "model.toml"
    path.write_text('[source]\nonnx = "model.onnx"\n')
    recipe = load_recipe(path)
    assert recipe == Recipe(name="model", folder=tmp_path, source=Source(onnx="model.onnx"))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_file_and_place(mistake: str, tmp_path: Path) -> None:
    text, parts = MISTAKES[mistake]
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)


def test_a_missing_recipe_and_a_binary_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.toml: cannot read"):
        load_recipe(tmp_path / "nowhere.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not a text file"):
        load_recipe(binary)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '[quantization]\nprecison = "fp16"',
            r"\[quantization\]: .*`precison`; expected precision",
        ),
        (
            "[gates]\nmax_dorp = 0.1",
            r"\[gates\]: .*`max_dorp`; expected max_drop or min_speedup",
        ),
        ("[gate]\nmax_drop = 0.1", r"`gate`; expected gates or source"),
        ('[quantization]\nmethod = "min-max"', r"method: .*'min-max'; expected minmax or auto"),
        (
            '[quantization]\ntechniques = ["smooth", "baias"]',
            r"techniques\[1\]: .*'baias'; expected bias",
        ),
    ],
)
def test_a_typing_mistake_is_told_what_could_stand_there(
    text: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f'[source]\nonnx = "m.onnx"\n{text}\n')
    with pytest.raises(RecipeError, match=expected):
        load_recipe(path)


@pytest.mark.parametrize("name", ["images", "in put", 'a"b', "größe", "x.1"])
def test_the_header_of_a_profile_reads_back_as_its_input(name: str, tmp_path: Path) -> None:
    table = f"{profile_table(name)}\nmin = [1]\nopt = [2]\nmax = [4]\n"
    path = tmp_path / "r.toml"
    path.write_text(f'[source]\nonnx = "a.onnx"\n{table}')
    assert list(load_recipe(path).build.profiles) == [name]
