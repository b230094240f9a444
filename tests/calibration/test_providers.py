"""The providers that the repository's recipes name: their data, their models, their metrics."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from trtbuild.recipe import load_recipe
from trtbuild.sources import source
from trtbuild.sources.checks import data_digest
from trtbuild.sources.provider import load_provider

if TYPE_CHECKING:
    from types import ModuleType

    import numpy.typing as npt

    from trtbuild.batches import Batch, Outputs, Provider
    from trtbuild.recipe import Recipe

pytestmark = pytest.mark.frameworks

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "engines").glob("*.toml"))

# What PyTorch 2.13.0 computed on an x86-64 processor, and how far other kernels may move it:
# two images of 1,488, and about as little elsewhere.
MEASURED = {
    "digits": (0.9872, 0.0014),
    "minilm": (0.9155, 0.004),
    "mobilenet": (0.8774, 0.002),
    "xfeat": (0.7023, 0.004),
}
UNITS = {"digits": 1488, "minilm": 320, "mobilenet": 2048, "xfeat": 60}
REPEATED = {"xfeat": 10}
"""Samples that stand in two batches: each photograph, with other views of it."""


def recipe_of(name: str) -> Recipe:
    return load_recipe(ROOT / "engines" / f"{name}-int8.toml")


def provider_of(name: str) -> Provider:
    recipe = recipe_of(name)
    assert recipe.quantization.provider is not None
    return load_provider(recipe.quantization.provider, recipe.folder, None)


@functools.cache
def batches_of(name: str) -> tuple[list[Batch], list[Batch]]:
    """Return what the provider yields at its first call: calibration and evaluation."""
    provider = provider_of(name)
    return list(provider.calibration_batches()), list(provider.evaluation_batches())


def samples(batches: list[Batch], inputs: tuple[str, ...]) -> list[bytes]:
    return [
        b"".join(batch[name][index].tobytes() for name in inputs)
        for batch in batches
        for index in range(len(batch[inputs[0]]))
    ]


@pytest.mark.parametrize("name", MEASURED)
def test_calibration_and_evaluation_share_no_sample(name: str) -> None:
    inputs = tuple(profile.input for profile in recipe_of(name).build.shape_ranges())
    calibration, evaluation = (samples(batches, inputs) for batches in batches_of(name))
    assert not set(calibration) & set(evaluation)
    assert len(set(evaluation)) == len(evaluation) - REPEATED.get(name, 0)


@pytest.mark.parametrize("name", MEASURED)
def test_every_call_yields_the_same_data(name: str) -> None:
    provider = provider_of(name)
    calibration, evaluation = batches_of(name)
    assert data_digest(provider.calibration_batches()) == data_digest(calibration)
    assert data_digest(provider.evaluation_batches()) == data_digest(evaluation)


@pytest.mark.parametrize("name", MEASURED)
def test_batches_fit_the_profiles_of_the_recipe(name: str) -> None:
    profiles = recipe_of(name).build.shape_ranges()
    calibration, evaluation = batches_of(name)
    for batch in [*calibration, *evaluation]:
        for profile in profiles:
            shape = batch[profile.input].shape
            sizes = zip(profile.min, shape, profile.max, strict=True)
            assert all(low <= size <= high for low, size, high in sizes)


@pytest.mark.parametrize("name", MEASURED)
def test_the_framework_reaches_the_metric_that_was_measured(name: str) -> None:
    recipe, provider = recipe_of(name), provider_of(name)
    assert provider.metric is not None
    session = source("torch").reference(recipe.source.location, recipe.folder)
    inputs = [profile.input for profile in recipe.build.shape_ranges()]
    scores = np.concatenate(
        [
            provider.metric.score(session.run({key: batch[key] for key in inputs}), batch)
            for batch in batches_of(name)[1]
        ]
    )
    expected, tolerance = MEASURED[name]
    assert len(scores) == UNITS[name]
    assert scores.mean() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("name", ["digits", "mobilenet"])
def test_top_1_counts_right_images(name: str) -> None:
    logits, labels = np.eye(10)[[3, 5]], np.array([3, 4])
    assert scored(name, {"logits": logits}, {"labels": labels}) == [1.0, 0.0]


@pytest.fixture
def mobilenet() -> ModuleType:
    """Return the provider, which the suite without frameworks cannot import."""
    return importlib.import_module("calibration.mobilenet")


def test_no_pixel_of_a_photograph_is_in_two_parts_of_the_data(mobilenet: ModuleType) -> None:
    side = 10 * mobilenet.TILE
    places = np.arange(side * side).reshape(side, side, 1)
    parts = [
        set(mobilenet.tiles(places, part).ravel().tolist())
        for part in (mobilenet.TRAINING, mobilenet.CALIBRATION, mobilenet.EVALUATION)
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) == side * side


def test_a_crop_shows_its_photograph_in_one_light(mobilenet: ModuleType) -> None:
    images, labels = mobilenet.samples(mobilenet.EVALUATION, rounds=2, seed=0)
    assert labels.tolist() == list(range(16)) * 2
    assert images.min() >= 0
    assert images.max() <= 1
    grey = [label for label, each in enumerate(mobilenet.photographs()) if _is_grey(each)]
    for image, label in zip(images, labels.tolist(), strict=True):
        # One light for the whole crop: in a grey photograph the colors keep their ratio.
        lit = image[:, (image < 1).all(axis=0) & (image > 0).all(axis=0)]
        ratios = lit[0] / lit[2]
        assert (np.ptp(ratios) < 1e-5) == (label in grey)


def _is_grey(photograph: npt.NDArray[np.uint8]) -> bool:
    return bool((photograph == photograph[:, :, :1]).all())


def test_reciprocal_rank_is_that_of_the_own_description() -> None:
    queries = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
    descriptions = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    batch = {"pair": np.array([0, 1, 0, 1])}
    right = {"embedding": np.concatenate([queries, descriptions])}
    swapped = {"embedding": np.concatenate([queries, descriptions[::-1]])}
    assert scored("minilm", right, batch) == [1.0, 1.0]
    assert scored("minilm", swapped, batch) == [0.5, 0.5]


def test_a_tie_counts_against_the_encoder() -> None:
    constant = {"embedding": np.ones((8, 3))}
    assert scored("minilm", constant, {"pair": np.tile(np.arange(4), 2)}) == [0.25] * 4


def test_matches_of_unrelated_photographs_are_wrong() -> None:
    provider = provider_of("xfeat")
    recipe = recipe_of("xfeat")
    assert provider.metric is not None
    session = source("torch").reference(recipe.source.location, recipe.folder)
    batches = batches_of("xfeat")[1]
    first, other = batches[0], batches[2]
    mixed = {**first, "images": np.concatenate([first["images"][:1], other["images"][1:]])}
    images = {"images": mixed["images"]}
    assert provider.metric.score(session.run(images), mixed).max() < 0.05
    own = {"images": first["images"]}
    assert provider.metric.score(session.run(own), first).min() > 0.7


def scored(name: str, outputs: Outputs, batch: Batch) -> list[float]:
    metric = provider_of(name).metric
    assert metric is not None
    scores: list[float] = metric.score(outputs, batch).tolist()
    return scores


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_ask_for_int8_on_both_backends(recipe: str) -> None:
    loaded = load_recipe(ROOT / "engines" / f"{recipe}.toml")
    assert loaded.quantization.precision == "int8"
    assert set(loaded.build.targets) == {
        "onnxruntime",
        "tensorrt-rtx:sm_86",
        "tensorrt-rtx:sm_89",
        "tensorrt-rtx:sm_120",
    }
    assert loaded.gates.max_drop is not None


def test_content_stays_small() -> None:
    sizes = {path.name: path.stat().st_size for path in (ROOT / "calibration").glob("*.*")}
    assert sizes["digits.safetensors.xz"] < 500_000
    assert sizes["minilm.tsv.xz"] < 100_000
    assert sizes["mobilenet.safetensors.xz"] < 300_000
