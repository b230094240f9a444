"""Whole runs with 2:4 weights: the builder's flag, the report, and what goes with what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import onnx
import pytest

import trtbuild
from tests.pipeline import models
from trtbuild.backends import tensorrt_rtx
from trtbuild.engine import Manifest
from trtbuild.errors import BuildError, RecipeError
from trtbuild.pipeline.context import working
from trtbuild.pipeline.job import quiet
from trtbuild.pipeline.quantizing import quantized
from trtbuild.pipeline.simplify import optimized
from trtbuild.pipeline.source import export_source, open_data
from trtbuild.pipeline.sparse import expect_sparse, sparsified
from trtbuild.recipe import Quantization, recipe_from_json
from trtbuild.report.document import from_json, to_json
from trtbuild.report.markdown import to_markdown
from trtbuild.store import Store, find_engine

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.recipe import Recipe


def sparse(folder: Path, target: str = models.GPU, **changes: str | tuple[str, ...]) -> Recipe:
    return models.with_quantization(models.recipe(folder, target), sparsity="2:4", **changes)


@pytest.mark.rtx
def test_a_sparse_engine_has_the_flag_in_its_key_and_its_layers_in_the_report(
    tmp_path: Path,
) -> None:
    dense = trtbuild.build(models.recipe(tmp_path), tmp_path / "store")
    report = trtbuild.build(sparse(tmp_path), tmp_path / "store")
    manifest = find_engine(Store.open(str(tmp_path / "store")), report.engines[0].key)
    key = manifest.read(Manifest).preimage
    assert dict(key.settings)["sparse_weights"] is True
    before = find_engine(Store.open(str(tmp_path / "store")), dense.engines[0].key)
    assert dict(before.read(Manifest).preimage.settings)["sparse_weights"] is False
    assert key.network_sha256 != before.read(Manifest).preimage.network_sha256

    assert dense.sparsity is None
    assert report.sparsity is not None
    assert report.sparsity.sparse == ("inner", "head")
    assert [each.node for each in report.sparsity.dense] == ["stem"]
    weights = {name: array.size for name, array in models.weights(0).items()}
    inside, outside = weights["w1"] + weights["w2"], weights["w0"]
    share = inside / (inside + outside)
    assert report.sparsity.weight_share == pytest.approx(share, abs=1e-6)
    assert set(report.sparsity.lost) == {"inner", "head"}
    assert from_json(to_json(report)) == report
    page = to_markdown(report)
    assert "## Sparsity 2:4" in page
    assert "2 of 3 layers, 85.1 % of their weights" in page
    assert "dense, since 3 inputs, not a multiple of 4: stem" in page
    assert "no sparse kernels" not in page
    assert trtbuild.build(sparse(tmp_path), tmp_path / "store").full_cache_hit


def test_onnx_runtime_is_said_to_gain_nothing_and_its_baseline_is_dense(tmp_path: Path) -> None:
    recipe, store = sparse(tmp_path, "onnxruntime"), Store.open(str(tmp_path / "store"))
    report = trtbuild.build(recipe, tmp_path / "store")
    assert "ONNX Runtime has no sparse kernels" in to_markdown(report)
    stage = next(each for each in report.stages if each.name.endswith(" fp32"))
    baseline = find_engine(store, stage.key).read(Manifest)
    with working(recipe, store, quiet) as context:
        dense = optimized(context, export_source(context, open_data(context)).graph)
    assert baseline.preimage.network_sha256 == dense.sha256
    assert recipe_from_json(baseline.recipe).quantization.sparsity is None


def test_without_data_the_magnitude_decides_and_the_report_says_so(tmp_path: Path) -> None:
    recipe = sparse(tmp_path, precision="fp32")
    recipe = models.with_quantization(recipe, provider=None)
    with working(recipe, Store.open(str(tmp_path / "store")), quiet) as context:
        graph = optimized(context, export_source(context, None).graph)
        _, found = sparsified(context, graph, None)
        assert found is not None
        assert found.lost == {}
        assert "without data" in found.criterion


def test_a_network_that_is_not_sparse_is_refused_where_kernels_need_it(tmp_path: Path) -> None:
    recipe = sparse(tmp_path)
    with working(recipe, Store.open(str(tmp_path / "store")), quiet) as context:
        data = open_data(context)
        dense = optimized(context, export_source(context, data).graph)
        pruned, found = sparsified(context, dense, data)
        assert found is not None
        expect_sparse(context, pruned, found, needed=True)
        with pytest.raises(BuildError, match=r"2 layers are not 2:4.*'inner', 'head'"):
            expect_sparse(context, dense, found, needed=True)
        expect_sparse(context, dense, found, needed=False)
        assert any("2 layers are not 2:4" in each.text for each in context.findings)


def test_every_technique_together_leaves_the_pattern_as_it_is(tmp_path: Path) -> None:
    recipe = sparse(tmp_path, techniques=("equalize", "smooth", "rounding", "bias"))
    scheme = tensorrt_rtx.SCHEME
    with working(recipe, Store.open(str(tmp_path / "store")), quiet) as context:
        data = open_data(context)
        dense = optimized(context, export_source(context, data).graph)
        pruned, found = sparsified(context, dense, data)
        assert found is not None
        network = quantized(context, pruned, data, (scheme,), None)[scheme.name]
        assert "rounding" in network.rows[-1].method
        expect_sparse(context, network.graph, found, needed=True)


def test_a_layer_can_be_kept_dense_and_a_wrong_name_is_told(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    with working(sparse(tmp_path, keep_dense=("inn*",)), store, quiet) as context:
        graph = optimized(context, export_source(context, None).graph)
        _, found = sparsified(context, graph, None)
        assert found is not None
        assert [each.node for each in found.dense] == ["stem", "inner"]
    renamed = onnx.load(tmp_path / "model.onnx")
    next(node for node in renamed.graph.node if node.name == "inner").name = "inner [1]"
    onnx.save(renamed, tmp_path / "model.onnx")
    with working(sparse(tmp_path, keep_dense=("inner [1]",)), store, quiet) as context:
        graph = optimized(context, export_source(context, None).graph)
        _, found = sparsified(context, graph, None)
        assert found is not None
        assert [each.node for each in found.dense] == ["stem", "inner [1]"]
    with working(sparse(tmp_path, keep_dense=("ine",)), store, quiet) as context:
        graph = optimized(context, export_source(context, None).graph)
        with pytest.raises(RecipeError, match=r"keep_dense 'ine' fits no node.*inner"):
            sparsified(context, graph, None)


@pytest.mark.parametrize(
    ("table", "part"),
    [
        ({"sparsity": "2:4", "precision": "int8", "trt_cache": "c"}, "calibration data"),
        ({"keep_dense": ("a",)}, "sparsity = '2:4'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    table: dict[str, object], part: str
) -> None:
    with pytest.raises(ValueError, match=part):
        msgspec.convert(table, Quantization)
