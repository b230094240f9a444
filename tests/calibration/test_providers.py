"""The providers that the repository's recipes name: their data, their models, their metrics."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from trtbuild.recipe import load_recipe
from trtbuild.sources import source
from trtbuild.sources.checks import data_digest
from trtbuild.sources.provider import load_provider

if TYPE_CHECKING:
    from trtbuild.batches import Batch, Outputs, Provider
    from trtbuild.recipe import Recipe

pytestmark = pytest.mark.frameworks

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "engines").glob("*.toml"))

# What PyTorch 2.13.0 computed on an x86-64 processor, and how far other kernels may move it:
# two images of 1,488, and about as little elsewhere.
MEASURED = {"digits": (0.9872, 0.0014), "minilm": (0.9155, 0.004), "xfeat": (0.7023, 0.004)}
UNITS = {"digits": 1488, "minilm": 320, "xfeat": 60}
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


def test_top_1_counts_right_images() -> None:
    assert scored("digits", {"logits": np.eye(10)[[3, 5]]}, {"labels": np.array([3, 4])}) == [
        1.0,
        0.0,
    ]


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
    assert sizes["digits.safetensors"] < 1_500_000
    assert sizes["digits.npz"] < 1_000_000
    assert sizes["minilm.tsv"] < 300_000
