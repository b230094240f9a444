"""Engines on a GPU that get other weights: they compute what a new build of them computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

import trtbuild
from tests.pipeline import models
from trtbuild.backends import NAMES, backend
from trtbuild.engine import Manifest
from trtbuild.errors import MissingBackendError
from trtbuild.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.batches import Array
    from trtbuild.engine import Setting
    from trtbuild.recipe import Recipe

pytestmark = pytest.mark.gpu


@pytest.fixture(params=[name for name in NAMES if name.startswith("tensorrt")])
def target(request: pytest.FixtureRequest) -> str:
    """A target of each flavor that builds and runs here."""
    name = str(request.param)
    try:
        found = backend(name).targets(())[0]
    except MissingBackendError as error:
        pytest.skip(str(error))
    if found.cannot_build or found.cannot_run:
        pytest.skip(found.cannot_build or found.cannot_run)
    return str(found.target)


def wish(folder: Path, target: str, seed: int, **options: Setting) -> Recipe:
    """Return the recipe of a classifier whose weights are drawn from ``seed``."""
    (folder / str(seed)).mkdir(exist_ok=True)
    models.classifier(folder / str(seed) / "model.onnx", seed=seed)
    recipe = models.recipe(folder / str(seed), target)
    recipe = models.with_quantization(recipe, precision="fp16")
    build = msgspec.structs.replace(recipe.build, options=options)
    return msgspec.structs.replace(recipe, build=build)


def built(recipe: Recipe, store: Path) -> Manifest:
    key = trtbuild.build(recipe, store).engines[0].key
    record = Store.open(str(store)).get("engine", key, Manifest)
    assert record is not None
    return record.read(Manifest)


def computed(manifest: Manifest, store: Path) -> Array:
    with trtbuild.load(manifest.key, store) as session:
        return session.run({"x": models.images(8)})["y"]


@pytest.mark.parametrize("strip", [False, True], ids=["weights", "stripped"])
def test_a_refitted_engine_computes_what_a_built_one_computes(
    target: str, tmp_path: Path, *, strip: bool
) -> None:
    options = {"refit": True, "strip_plan": strip}
    old = built(wish(tmp_path, target, 0, **options), tmp_path / "store")
    new = built(wish(tmp_path, target, 1, **options), tmp_path / "store")
    assert new.refit_of == old.sha256, new.warnings
    assert any(text.startswith("refitted from engine") for text in new.warnings)
    fresh = built(wish(tmp_path, target, 1, **options), tmp_path / "elsewhere")
    assert fresh.refit_of == ""
    got = computed(new, tmp_path / "store")
    expected = computed(fresh, tmp_path / "elsewhere")
    np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-3)
    assert not np.allclose(got, computed(old, tmp_path / "store"), rtol=1e-2, atol=1e-3)


def test_an_engine_without_refit_is_built_again(target: str, tmp_path: Path) -> None:
    built(wish(tmp_path, target, 0), tmp_path / "store")
    assert built(wish(tmp_path, target, 1), tmp_path / "store").refit_of == ""


def test_an_identical_refit_gives_a_stripped_engine_its_weights(
    target: str, tmp_path: Path
) -> None:
    options = {"refit_identical": True, "strip_plan": True}
    stripped = built(wish(tmp_path, target, 0, **options), tmp_path / "store")
    whole = built(wish(tmp_path, target, 0), tmp_path / "store")
    assert stripped.bytes < whole.bytes
    got = computed(stripped, tmp_path / "store")
    np.testing.assert_allclose(got, computed(whole, tmp_path / "store"), rtol=1e-2, atol=1e-3)
