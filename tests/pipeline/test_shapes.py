"""Open axes, profiles, several inputs and outputs, integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

import trtbuild
from tests.pipeline import models
from trtbuild.batches import Provider
from trtbuild.engine import Manifest, ShapeRange
from trtbuild.errors import DataError, RecipeError
from trtbuild.graph.model import read_graph
from trtbuild.pipeline.source import Data, DataInfo
from trtbuild.pipeline.verification import latency_inputs
from trtbuild.recipe import (
    Build,
    Profile,
    Quantization,
    Recipe,
    Source,
    recipe_from_json,
)
from trtbuild.sources.checks import data_digest
from trtbuild.sources.dependencies import Dependencies
from trtbuild.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trtbuild.batches import Batch

WORDS, WIDTH = 50, 16

PROVIDER = """
import numpy as np

def batches(seed):
    random = np.random.default_rng(seed)
    for count, length in ((3, 5), (4, 8), (2, 7), (4, 8)):
        ids = random.integers(0, 50, (count, length))
        yield {"ids": ids, "mask": (ids > 5).astype(np.int64)}

def calibration_batches():
    return batches(0)

def evaluation_batches():
    return batches(1)
"""


def encoder(path: Path) -> Path:
    """Write a text encoder: int64 ``ids`` and ``mask`` to ``words`` and their mean ``text``."""
    random = np.random.default_rng(0)
    constants: dict[str, models.Array] = {
        "table": random.standard_normal((WORDS, WIDTH)).astype(np.float32),
        "w": (random.standard_normal((WIDTH, WIDTH)) / 4).astype(np.float32),
        "axis": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="lookup"),
        helper.make_node("Cast", ["mask"], ["flags"], name="flags", to=1),
        helper.make_node("Unsqueeze", ["flags", "axis"], ["column"], name="column"),
        helper.make_node("Mul", ["rows", "column"], ["kept"], name="kept"),
        helper.make_node("MatMul", ["kept", "w"], ["h"], name="product"),
        helper.make_node("Relu", ["h"], ["words"], name="relu"),
        helper.make_node("ReduceMean", ["words"], ["text"], name="mean", axes=[1], keepdims=0),
    ]
    inputs = [models.integers(name, "batch", "length") for name in ("ids", "mask")]
    outputs = [
        models.floats("words", "batch", "length", WIDTH),
        models.floats("text", "batch", WIDTH),
    ]
    return models.save(path, nodes, constants, inputs, outputs)


def recipe(folder: Path, target: str, profiles: dict[str, Profile]) -> Recipe:
    encoder(folder / "encoder.onnx")
    (folder / "provider.py").write_text(PROVIDER)
    return Recipe(
        name="encoder",
        folder=folder,
        source=Source(onnx="encoder.onnx"),
        quantization=Quantization(precision="int8", provider="provider.py", method="minmax"),
        build=Build(targets=(target,), profiles=profiles),
    )


IDS = Profile(min=(1, 4), opt=(4, 8), max=(8, 16))


@pytest.mark.rtx
def test_axes_of_one_name_have_one_profile(tmp_path: Path) -> None:
    report = trtbuild.build(recipe(tmp_path, models.GPU, {"ids": IDS}), tmp_path / "store")
    (engine,) = report.engines
    assert engine.precision_achieved == {"int8": 1}
    assert [error.output for error in engine.verification.outputs] == ["words", "text"]
    assert engine.verification.samples == 13
    record = Store.open(str(tmp_path / "store")).get("engine", engine.key)
    assert record is not None
    (profile,) = record.read(Manifest).preimage.profiles
    assert [item.input for item in profile] == ["ids", "mask"]
    assert profile[0].opt == profile[1].opt == (4, 8)
    assert profile[0].max == profile[1].max == (8, 16)


def test_an_open_axis_that_is_no_batch_needs_a_profile(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'ids'.*\[batch, length\].*--shape ids:MIN,OPT,MAX"):
        trtbuild.build(recipe(tmp_path, "onnxruntime", {}), tmp_path / "store")
    assert not list(Store.open(str(tmp_path / "store")).records("engine"))


def test_an_engine_of_several_inputs_and_outputs_runs(tmp_path: Path) -> None:
    report = trtbuild.build(recipe(tmp_path, "onnxruntime", {"ids": IDS}), tmp_path / "store")
    latency = report.engines[0].verification.latency_ms
    assert latency is not None
    assert latency.batch_size == 4
    session = trtbuild.load(report.engines[0].key, tmp_path / "store")
    ids = np.arange(10, dtype=np.int64).reshape(2, 5)
    outputs = session.run({"ids": ids, "mask": np.ones_like(ids)})
    assert list(outputs) == ["words", "text"]
    np.testing.assert_allclose(outputs["words"].mean(axis=1), outputs["text"], atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "place", "precision"),
    [
        (40, "calibration samples 32 to 63: ", "int8"),
        (79, "evaluation batch ", "int8"),
        (79, "evaluation batch ", "fp32"),
    ],
)
def test_data_on_which_the_model_fails_is_named_with_what_to_do(
    wrong: int, place: str, precision: str, tmp_path: Path
) -> None:
    given = recipe(tmp_path, "onnxruntime", {"ids": IDS})
    ids = np.arange(80 * 8).reshape(80, 8) % WORDS
    ids[wrong, 3] = WORDS
    np.savez(tmp_path / "data.npz", ids=ids, mask=np.ones_like(ids))
    asked = models.with_quantization(given, precision=precision, provider="data.npz")
    with pytest.raises(DataError) as caught:
        trtbuild.build(asked, tmp_path / "store")
    assert str(caught.value).startswith(place)
    for part in ("ids int64[", "'lookup'", "out of data bounds, idx=50", "Give values"):
        assert part in str(caught.value)


def data_of(*batches: Batch) -> Data:
    def again() -> Iterator[Batch]:
        return iter(batches)

    info = DataInfo(
        calibration_sha256=data_digest(batches),
        calibration_samples=len(batches),
        evaluation_sha256=data_digest(batches),
        evaluation_batches=len(batches),
        metric_sha256="",
        example=(),
    )
    provider = Provider(
        name="test", calibration_batches=again, evaluation_batches=again, metric=None
    )
    return Data(provider=provider, info=info, dependencies=Dependencies())


def text(count: int, length: int) -> Batch:
    ids = np.full((count, length), length, np.int64)
    return {"ids": ids, "mask": ids, "label": np.zeros(count)}


@pytest.mark.parametrize(
    ("batches", "shape"),
    [
        ([text(3, 5), text(2, 8), text(2, 8)], (4, 8)),
        ([text(9, 5), text(1, 7)], (4, 5)),
        ([text(1, 5)], (4, 5)),
    ],
)
def test_latency_is_of_the_tuned_shape_where_the_data_has_it(
    batches: list[Batch], shape: tuple[int, int], tmp_path: Path
) -> None:
    graph = read_graph(encoder(tmp_path / "encoder.onnx"))
    profile = tuple(
        ShapeRange(input=name, min=IDS.min, opt=IDS.opt, max=IDS.max)
        for name in ("ids", "mask")
    )
    inputs = latency_inputs(data_of(*batches), graph, profile)
    assert list(inputs) == ["ids", "mask"]
    assert {array.shape for array in inputs.values()} == {shape}
    assert {array.dtype.name for array in inputs.values()} == {"int64"}


def test_another_tuned_batch_is_timed_again(tmp_path: Path) -> None:
    """ONNX Runtime's engine has the same bytes for every profile; its latency has not."""
    given = models.recipe(tmp_path, "onnxruntime")
    given = models.with_quantization(given, precision="fp32")
    sizes = []
    for opt in (2, 16):
        report = trtbuild.build(models.with_profile(given, 1, opt, 32), tmp_path / "store")
        latency = report.engines[0].verification.latency_ms
        assert latency is not None
        sizes.append((report.engines[0].sha256, latency.batch_size))
    assert sizes[0][0] == sizes[1][0]
    assert [size for _, size in sizes] == [2, 16]


def test_verify_measures_anew_and_a_baseline_has_a_recipe_of_its_own(tmp_path: Path) -> None:
    recipe = models.recipe(tmp_path, "onnxruntime")
    key = trtbuild.build(recipe, tmp_path / "store").engines[0].key
    report = trtbuild.verify(key[:16], tmp_path / "store")
    assert models.computed(report) == ["verify", "time"]
    records = Store.open(str(tmp_path / "store")).records("engine")
    (baseline,) = [record for record in records if record.key != key]
    manifest = baseline.read(Manifest)
    assert recipe_from_json(manifest.recipe).quantization.precision == "fp32"


def test_a_scalar_input_beside_a_fixed_batch_is_no_obstacle(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Mul", ["h", "gain"], ["y"], name="gain"),
    ]
    models.save(
        tmp_path / "model.onnx",
        nodes,
        {"w": models.images(1)[0, 0]},
        [models.floats("x", 2, 16), models.floats("gain")],
        [models.floats("y", 2, 16)],
    )
    (tmp_path / "provider.py").write_text(
        "import numpy as np\n"
        "def calibration_batches():\n"
        "    yield {'x': np.ones((2, 16), 'f'), 'gain': np.array(2, 'f')}\n"
        "evaluation_batches = calibration_batches\n"
    )
    given = models.recipe(tmp_path, "onnxruntime")
    report = trtbuild.build(
        models.with_quantization(given, provider="provider.py"), tmp_path / "store"
    )
    assert report.engines[0].precision_achieved == {"int8": 1}
