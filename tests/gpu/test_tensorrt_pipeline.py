"""Whole runs with TensorRT proper: built, verified on the GPU, timed by layer, loaded."""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from onnx import helper

import trtbuild
from tests.backends import building, graphs
from tests.backends.test_trt_plugins import library
from tests.pipeline import models
from trtbuild.backends import gpu, tensorrt
from trtbuild.backends.isolation import build_isolated
from trtbuild.backends.ort_session import open_graph
from trtbuild.engine import Manifest, ShapeRange
from trtbuild.errors import BuildError
from trtbuild.graph.model import read_graph
from trtbuild.pipeline.layer_times import timed_layers
from trtbuild.recipe import Limits
from trtbuild.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trtbuild.engine import Setting, Target
    from trtbuild.recipe import Recipe
    from trtbuild.report.document import EngineReport

pytestmark = pytest.mark.gpu
LIMITS = Limits(build_seconds=300)


@pytest.fixture
def target() -> Target:
    found = tensorrt.targets(())[0]
    if found.cannot_build or found.cannot_run:
        pytest.skip(found.cannot_build or found.cannot_run)
    return found.target


def wish(folder: Path, target: Target, **options: Setting) -> Recipe:
    recipe = models.recipe(folder, str(target))
    recipe = models.with_quantization(recipe, precision="fp16")
    build = msgspec.structs.replace(recipe.build, options=options)
    return msgspec.structs.replace(recipe, build=build)


def built(recipe: Recipe, store: Path) -> tuple[EngineReport, Manifest]:
    (report,) = trtbuild.build(recipe, store).engines
    record = Store.open(str(store)).get("engine", report.key, Manifest)
    assert record is not None
    return report, record.read(Manifest)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"version_compatible": True},
        {"version_compatible": True, "exclude_lean_runtime": True},
        {"hardware_compatible": "ampere_plus"},
        {"hardware_compatible": "same_compute_capability"},
        {"refit": True, "strip_plan": True},
        {"weight_streaming": True},
        {"build_repeats": 2, "version_compatible": True},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_an_engine_is_verified_and_timed_by_layer_on_the_gpu(
    options: dict[str, Setting], target: Target, tmp_path: Path
) -> None:
    report, manifest = built(wish(tmp_path, target, **options), tmp_path / "store")
    assert report.verification.measured_on == "device"
    assert report.verification.latency_ms is not None
    found = timed_layers(Store.open(str(tmp_path / "store")), manifest, pytest.fail)
    times = [layer.milliseconds for layer in found.layers if layer.compute]
    assert times
    assert all(time is not None and time > 0 for time in times)


@pytest.mark.parametrize("budget_mib", [0, 1])
def test_streamed_weights_compute_the_same_within_any_budget(
    budget_mib: int, target: Target, tmp_path: Path
) -> None:
    _, plain = built(wish(tmp_path, target), tmp_path / "store")
    _, streamed = built(wish(tmp_path, target, weight_streaming=True), tmp_path / "store")
    x = {"x": models.images(8)}
    with trtbuild.load(plain.key, tmp_path / "store") as session:
        expected = session.run(x)["y"]
    with trtbuild.load(
        streamed.key, tmp_path / "store", weight_budget_mib=budget_mib
    ) as session:
        np.testing.assert_allclose(session.run(x)["y"], expected, rtol=1e-2, atol=1e-3)


def test_an_engine_with_a_plugin_library_is_verified_timed_and_loaded(
    target: Target, tmp_path: Path
) -> None:
    (tmp_path / "plugin.so").write_bytes(library(tmp_path, "PIPELINE_PLUGIN"))
    recipe = wish(tmp_path, target, plugins=str(tmp_path / "plugin.so"))
    report, manifest = built(recipe, tmp_path / "store")
    assert report.verification.measured_on == "device"
    found = timed_layers(Store.open(str(tmp_path / "store")), manifest, pytest.fail)
    assert any(layer.milliseconds for layer in found.layers)
    with trtbuild.load(manifest.key, tmp_path / "store") as session:
        assert session.run({"x": models.images(2)})["y"].shape == (2, models.CLASSES)


def test_an_operator_that_is_a_plugin_of_tensorrt_is_verified_in_another_process(
    target: Target, tmp_path: Path
) -> None:
    rois = np.array([[0, 0, 8, 8], [4, 4, 12, 12]], np.float32)
    node = helper.make_node(
        "RoiAlign", ["x", "rois", "which"], ["y"], name="roi", output_height=4, output_width=4
    )
    constants: dict[str, models.Array] = {"rois": rois, "which": np.zeros(2, np.int64)}
    path = models.save(
        tmp_path / "m.onnx",
        [node],
        constants,
        [models.floats("x", 1, *models.IMAGE)],
        [models.floats("y", 2, 3, 4, 4)],
    )
    building.build(read_graph(path), target, tmp_path / "engine")
    from trtbuild.backends import trt_session  # noqa: PLC0415  beside what it opens

    x = models.images(1)
    (expected,) = open_graph(path, fused=False).run({"x": x}).values()
    with trt_session.open_session((tmp_path / "engine").read_bytes(), target) as session:
        (got,) = session.run({"x": x}).values()
    np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2)


@contextlib.contextmanager
def occupied(left_bytes: int) -> Iterator[None]:
    """Hold the memory of the GPU but for about so many bytes."""
    cuda = ctypes.CDLL("libcuda.so.1")
    gpu.make_current(0)
    free, total, taken = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_uint64()
    cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    size = ctypes.c_size_t(max(free.value - left_bytes, 1))
    if cuda.cuMemAlloc_v2(ctypes.byref(taken), size):
        pytest.skip("the GPU's memory cannot be taken in one piece")
    try:
        yield
    finally:
        cuda.cuMemFree_v2(taken)


def test_a_small_workspace_still_gives_an_engine(target: Target, tmp_path: Path) -> None:
    report, _ = built(wish(tmp_path, target, workspace_mib=1), tmp_path / "store")
    assert report.verification.measured_on == "device"


@pytest.mark.parametrize("left_mib", [800, 1500, 3000])
def test_a_gpu_that_is_almost_full_gives_an_engine_or_says_what_to_free(
    left_mib: int, target: Target, tmp_path: Path
) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    request = building.request(graph, target, tmp_path / "engine")
    with occupied(left_mib << 20):
        try:
            record = build_isolated(request, LIMITS)
        except BuildError as error:
            assert "machine's memory" not in str(error)  # noqa: PT017  either end is right
            assert "GPU" in str(error)  # noqa: PT017  as above
        else:
            assert record.layers.layers


def test_shapes_that_no_gpu_holds_are_told_to_be_too_large(
    target: Target, tmp_path: Path
) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    sides = (graphs.CHANNELS, graphs.SIZE, graphs.SIZE)
    huge = (1 << 20, *sides)
    shapes = ShapeRange(input="x", min=(1, *sides), opt=huge, max=huge)
    request = building.request(graph, target, tmp_path / "engine")
    request = msgspec.structs.replace(request, profiles=((shapes,),))
    with pytest.raises(BuildError) as caught:
        build_isolated(request, LIMITS)
    assert "machine's memory" not in str(caught.value)
