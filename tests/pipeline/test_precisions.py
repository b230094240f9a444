"""What an engine is asked to compute in, and what the report says that it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

import trtbuild
from tests.graph import light
from tests.pipeline import models
from trtbuild.engine import Manifest
from trtbuild.recipe import Gates
from trtbuild.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.recipe import Recipe


@pytest.mark.rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_every_compute_layer_has_the_precision_that_was_asked_for(
    precision: str, tmp_path: Path
) -> None:
    recipe = models.with_quantization(models.recipe(tmp_path), precision=precision)
    (engine,) = trtbuild.build(recipe, tmp_path / "store").engines
    assert engine.precision_requested == precision
    assert engine.precision_achieved == {precision: 3}
    assert engine.int8_mac_share == (1.0 if precision == "int8" else 0.0)
    (errors,) = engine.verification.outputs
    assert errors.sqnr_db is None or errors.sqnr_db > 30


def test_a_precision_without_kernels_here_is_reported_and_fails_its_gate(
    tmp_path: Path,
) -> None:
    """ONNX Runtime computes FP16 graphs in FP32 where its processor has no kernels for them."""
    recipe = models.recipe(tmp_path, "onnxruntime")
    report = trtbuild.build(
        models.with_quantization(recipe, precision="fp16", provider=None), tmp_path / "store"
    )
    (engine,) = report.engines
    (gate,) = [g for g in engine.verification.gates if g.name == "precision_achieved"]
    assert sum(engine.precision_achieved.values()) == 3
    assert gate.value == engine.precision_achieved.get("fp16", 0)
    assert gate.passed == ("fp16" in engine.precision_achieved)
    assert report.exit_code == (0 if gate.passed else 5)


def scaled(folder: Path, scale: float, beyond: int) -> Recipe:
    """Return the recipe of ``scale`` times ``x``, squared, in FP16.

    The data for evaluation is ``beyond`` times that for calibration, which is within 1.
    """
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Mul", ["h", "h"], ["y"], name="square"),
    ]
    shape = ("batch", 16)
    models.save(
        folder / "model.onnx",
        nodes,
        {"w": np.eye(16, dtype=np.float32) * np.float32(scale)},
        [models.floats("x", *shape)],
        [models.floats("y", *shape)],
    )
    (folder / "provider.py").write_text(
        "import numpy as np\n"
        "x = np.linspace(-1, 1, 64).reshape(4, 16).astype('f')\n"
        "def calibration_batches():\n    yield {'x': x}\n"
        f"def evaluation_batches():\n    yield {{'x': x * {beyond}}}\n"
        "def metric(outputs, batch):\n    return outputs['y'].mean(axis=1)\n"
    )
    recipe = models.with_gates(models.recipe(folder), Gates(max_drop=1e9))
    return models.with_quantization(recipe, precision="fp16", provider="provider.py")


@pytest.mark.rtx
def test_nodes_that_overflow_in_calibration_stay_in_fp32_and_are_named(tmp_path: Path) -> None:
    report = trtbuild.build(scaled(tmp_path, 1000.0, 1), tmp_path / "store")
    told = [finding.text for finding in report.findings if finding.stage == "cast"]
    assert any("'square' stays in FP32" in text for text in told)
    assert report.passed


@pytest.mark.rtx
def test_an_overflow_beyond_calibration_fails_the_gates_and_is_no_crash(tmp_path: Path) -> None:
    report = trtbuild.build(scaled(tmp_path, 10.0, 100), tmp_path / "store")
    failed = {gate.name for gate in report.engines[0].verification.gates if not gate.passed}
    assert failed == {"finite_outputs", "max_drop"}
    assert report.exit_code == 5


@pytest.mark.rtx
def test_every_convolution_of_squeezenet_runs_in_int8(tmp_path: Path) -> None:
    light.write("squeezenet", tmp_path / "model.onnx")
    random = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", data_0=random.random((5, 3, 224, 224), np.float32))
    report = trtbuild.build(models.recipe(tmp_path), tmp_path / "store")
    (engine,) = report.engines
    assert engine.int8_mac_share == 1.0
    assert engine.precision_achieved == {"int8": 26}
    record = Store.open(str(tmp_path / "store")).get("engine", engine.key)
    assert record is not None
    layers = record.read(Manifest).layers.layers
    assert sum(layer.compute for layer in layers) == 26
    assert engine.fused_layers > 0


def test_a_recurrent_layer_counts_among_what_int8_does_not_compute(tmp_path: Path) -> None:
    steps, inputs, hidden, classes = 8, 16, 32, 12
    random = np.random.default_rng(0)
    shapes = {
        "w": (1, 4 * hidden, inputs),
        "r": (1, 4 * hidden, hidden),
        "head": (hidden, classes),
    }
    constants: dict[str, models.Array] = {
        name: (random.standard_normal(shape) / 4).astype(np.float32)
        for name, shape in shapes.items()
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="steps", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r"], ["", "h"], name="lstm", hidden_size=hidden),
        helper.make_node("Squeeze", ["h", "axis"], ["last"], name="last"),
        helper.make_node("MatMul", ["last", "head"], ["y"], name="head"),
    ]
    constants["axis"] = np.array([0], np.int64)
    x = models.floats("x", "batch", steps, inputs)
    y = models.floats("y", "batch", classes)
    models.save(tmp_path / "model.onnx", nodes, constants, [x], [y])
    data = random.standard_normal((40, steps, inputs)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=data)
    (engine,) = trtbuild.build(
        models.recipe(tmp_path, "onnxruntime"), tmp_path / "store"
    ).engines
    assert engine.precision_achieved == {"fp32": 1, "int8": 1}
    product, recurrent = hidden * classes, steps * 4 * hidden * (inputs + hidden)
    assert engine.int8_mac_share == pytest.approx(product / (product + recurrent), abs=1e-5)
    assert sum(engine.mac_share.values()) == pytest.approx(1, abs=1e-5)


def test_calibration_data_of_one_value_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.ones((40, *models.IMAGE), np.float32))
    report = trtbuild.build(models.recipe(tmp_path, "onnxruntime"), tmp_path / "store")
    told = [found.text for found in report.findings if found.stage == "calibrate"]
    assert [text.partition(":")[0] for text in told] == [
        "input 'x' is 1 everywhere in the calibration data"
    ]


def test_a_metric_that_is_the_same_for_all_units_is_told(tmp_path: Path) -> None:
    recipe = models.with_quantization(models.recipe(tmp_path, "onnxruntime"), provider="p.py")
    same = "return np.ones(len(batch['x']))"
    (tmp_path / "p.py").write_text(
        models.METRIC.replace('np.load("data.npz")', f"np.load({str(tmp_path / 'data.npz')!r})")
        .replace(', "wanted": np.load("wanted.npy")', "")
        .replace('return -np.abs(outputs["y"] - batch["wanted"]).mean(axis=1)', same)
    )
    report = trtbuild.build(recipe, tmp_path / "store")
    told = [found.text for found in report.findings if found.stage == "verify"]
    assert any(text.startswith("closeness is 1 for each of 8 units") for text in told)
