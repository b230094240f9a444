"""Whole runs from a calibration cache: no data needed, and the engine that data would give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import onnx
import pytest
from onnx import numpy_helper

import trtbuild
from tests.pipeline import models
from trtbuild.backends import onnxruntime, tensorrt_rtx
from trtbuild.canonical import sha256_file
from trtbuild.errors import DataError
from trtbuild.pipeline.caches import fit, measure
from trtbuild.pipeline.context import working
from trtbuild.pipeline.job import quiet
from trtbuild.pipeline.legacy import legacy
from trtbuild.pipeline.partial import Part
from trtbuild.pipeline.quantizing import quantized
from trtbuild.pipeline.simplify import optimized
from trtbuild.pipeline.source import export_source, open_data
from trtbuild.quantization.trt_cache import read_cache, write_cache
from trtbuild.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.backends.scheme import Scheme
    from trtbuild.recipe import Recipe


def part(recipe: Recipe) -> Part:
    return Part(recipe=recipe, store=Store.open(str(recipe.folder / "store")), say=quiet)


def with_cache(recipe: Recipe, **changes: str | None) -> Recipe:
    """Return the recipe without its data, a cache of our own minmax scales in its place."""
    path = recipe.folder / "model.cache"
    if not path.exists():
        write_cache(measure(part(recipe), "minmax", "8601"), path)
    table = {"provider": None, "trt_cache": "model.cache", **changes}
    return models.with_quantization(recipe, **table)


def change(recipe: Recipe, tensor: str, scale: float | None) -> None:
    """Give ``tensor`` another scale in the cache, or none."""
    path = recipe.folder / "model.cache"
    cache = read_cache(path)
    scales = {**cache.scales, tensor: scale}
    kept = {name: each for name, each in scales.items() if each is not None}
    write_cache(msgspec.structs.replace(cache, scales=kept), path)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A network: the digest of its file, its scales by name, and what was said of it."""

    sha256: str
    scales: dict[str, float]
    method: str
    findings: tuple[str, ...]


def network(recipe: Recipe, scheme: Scheme = tensorrt_rtx.SCHEME) -> Made:
    """Return the Q/DQ graph of a recipe, by the stages that come before its engine."""
    with working(recipe, Store.open(str(recipe.folder / "store")), quiet) as context:
        data = open_data(context)
        source = export_source(context, data).graph
        graph, cache = optimized(context, source), legacy(context, source)
        made = quantized(context, graph, data, (scheme,), cache)[scheme.name]
        constants = onnx.load(made.graph.path).graph.initializer
        return Made(
            sha256=sha256_file(made.graph.path),
            scales={
                each.name: float(numpy_helper.to_array(each))
                for each in constants
                if each.name.endswith("_scale") and not each.dims
            },
            method=made.rows[0].method,
            findings=tuple(each.text for each in context.findings),
        )


@pytest.mark.rtx
def test_a_cache_alone_gives_an_int8_engine_and_a_second_run_is_a_full_hit(
    tmp_path: Path,
) -> None:
    recipe = with_cache(models.recipe(tmp_path))
    report = trtbuild.build(recipe, tmp_path / "store")
    assert report.engines[0].precision_achieved["int8"] == 3
    assert report.engines[0].verification.samples == 0
    assert not any(stage.name == "calibrate" for stage in report.stages)
    assert trtbuild.build(recipe, tmp_path / "store").full_cache_hit

    change(recipe, "r0", 1.0)
    judged = models.with_quantization(recipe, evaluation="data.npz")
    changed = trtbuild.build(judged, tmp_path / "store")
    assert not changed.full_cache_hit
    assert changed.engines[0].key != report.engines[0].key
    assert changed.engines[0].verification.samples == 40


@pytest.mark.parametrize("scheme", [tensorrt_rtx.SCHEME, onnxruntime.SCHEME])
def test_our_cache_gives_the_network_that_our_data_gives(
    scheme: Scheme, tmp_path: Path
) -> None:
    recipe = models.recipe(tmp_path)
    direct, through = network(recipe, scheme), network(with_cache(recipe), scheme)
    assert through.method == "TRT-8601-MinMaxCalibration"
    assert through.scales.keys() == direct.scales.keys()
    # ONNX Runtime's own networks use one-sided intervals; a cache knows magnitudes only.
    assert (through.sha256 == direct.sha256) == (scheme.activation == "int8")


def test_the_scales_of_a_cache_are_those_of_the_network_to_the_last_bit(
    tmp_path: Path,
) -> None:
    recipe = with_cache(models.recipe(tmp_path))
    change(recipe, "r0", 0.0123456789)
    cache = read_cache(tmp_path / "model.cache")
    found = network(recipe)
    assert found.scales == {f"{name}_scale": cache.scales[name] for name in ("x", "r0", "flat")}


def test_a_tensor_that_the_cache_lacks_is_refused_by_name_and_filled_by_data(
    tmp_path: Path,
) -> None:
    recipe = models.recipe(tmp_path)
    alone = with_cache(recipe)
    change(recipe, "r0", None)
    with pytest.raises(DataError, match=r"no scale for 1 of 3 tensors.* 'r0'.*--calibration"):
        network(alone)
    with pytest.raises(DataError, match="'r0'"):  # evaluation data must not calibrate
        network(with_cache(recipe, evaluation="data.npz"))
    change(recipe, "x", 2.0)
    filled = network(with_cache(recipe, provider="data.npz", method="minmax"))
    assert filled.method == "TRT-8601-MinMaxCalibration + minmax"
    assert filled.scales["x_scale"] == 2.0
    assert filled.scales["r0_scale"] == network(recipe).scales["r0_scale"]
    assert any("1 tensors are not in the calibration cache" in f for f in filled.findings)


def test_a_written_cache_has_every_tensor_of_the_model_that_tensorrt_sees(
    tmp_path: Path,
) -> None:
    recipe = with_cache(models.recipe(tmp_path))
    cache = read_cache(tmp_path / "model.cache")
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert list(cache.scales) == ["x", *(name for node in nodes for name in node.output)]
    for each in fit(part(recipe)).schemes:
        assert each.coverage.missing == ()
