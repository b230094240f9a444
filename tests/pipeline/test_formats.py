"""Engines of every number format, for every architecture that has it and for no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

import trtbuild
from tests.pipeline import models, transformer
from trtbuild.backends.tensorrt_rtx import ARCHS
from trtbuild.engine import PACKED
from trtbuild.errors import BuildError, RecipeError
from trtbuild.pipeline.targets import plan_targets

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.engine import Precision

HAVE: dict[Precision, tuple[str, ...]] = {
    "int8": ARCHS,
    "fp8": ("sm_89", "sm_120", "sm_121"),
    "int4": ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121"),
    "nvfp4": ("sm_120", "sm_121"),
    "mxfp4": ("sm_120", "sm_121"),
}


@pytest.mark.rtx
@pytest.mark.parametrize(
    ("precision", "least_db"),
    [("int8", 30), ("fp8", 22), ("int4", 14), ("nvfp4", 15), ("mxfp4", 13)],
)
def test_a_format_builds_where_it_is_and_computes_what_it_says(
    precision: Precision, least_db: float, tmp_path: Path
) -> None:
    """FP16 is around all of them, and is what packed weights compute in."""
    recipe = transformer.recipe(tmp_path, f"tensorrt-rtx:{HAVE[precision][-1]}")
    recipe = models.with_quantization(recipe, precision=precision)
    recipe = models.with_targets(recipe, *(f"tensorrt-rtx:{a}" for a in HAVE[precision]))
    report = trtbuild.build(recipe, tmp_path / "store")
    assert [engine.arch for engine in report.engines] == list(HAVE[precision])
    packed = PACKED.get(precision)
    for engine in report.engines:
        computing = "fp16" if packed else precision
        assert engine.precision_achieved == {computing: 3}
        assert engine.mac_share == {computing: 1.0}
        assert engine.int8_mac_share == (1.0 if precision == "int8" else 0.0)
        assert engine.weights_packed == ({packed: 3} if packed else {})
        (errors,) = engine.verification.outputs
        assert errors.sqnr_db is not None
        assert least_db < errors.sqnr_db < 60
    assert report.passed


@pytest.mark.rtx
@pytest.mark.parametrize("precision", HAVE)
def test_an_architecture_without_the_format_is_refused_by_name_or_skipped(
    precision: Precision, tmp_path: Path
) -> None:
    recipe = transformer.recipe(tmp_path, "tensorrt-rtx")
    recipe = models.with_quantization(recipe, precision=precision)
    plan = plan_targets(recipe, strict=False)
    assert tuple(each.target.arch for each in plan.planned) == HAVE[precision]
    assert len(plan.planned) + len(plan.skipped) == len(ARCHS)
    for arch in set(ARCHS) - set(HAVE[precision]):
        with pytest.raises(RecipeError, match=rf"{arch} has no .* ask for "):
            plan_targets(models.with_targets(recipe, f"tensorrt-rtx:{arch}"), strict=False)


@pytest.mark.rtx
@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_weights_are_packed_without_data(precision: Precision, tmp_path: Path) -> None:
    recipe = transformer.recipe(tmp_path, "tensorrt-rtx:sm_120")
    recipe = models.with_quantization(recipe, precision=precision, provider=None)
    (engine,) = trtbuild.build(recipe, tmp_path / "store").engines
    assert sum(engine.weights_packed.values()) == 3
    assert engine.verification.outputs == ()


def test_activations_are_never_quantized_without_data(tmp_path: Path) -> None:
    recipe = transformer.recipe(tmp_path, "onnxruntime")
    with pytest.raises(ValueError, match="fp8 needs calibration data"):
        models.with_quantization(recipe, precision="fp8", provider=None)


@pytest.mark.rtx
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_products_whose_sums_exceed_fp16_hand_out_fp32_and_stay_quantized(
    precision: Precision, tmp_path: Path
) -> None:
    recipe = transformer.recipe(tmp_path, "tensorrt-rtx:sm_89", gain=100.0)
    recipe = models.with_quantization(recipe, precision=precision)
    report = trtbuild.build(recipe, tmp_path / "store")
    (engine,) = report.engines
    assert engine.precision_achieved == {precision: 3}
    (told,) = [each.text for each in report.findings if each.stage == "cast"]
    assert "products of quantized numbers hand out FP32" in told
    assert engine.verification.passed


@pytest.mark.rtx
@pytest.mark.parametrize("rest", ["fp32", "fp16", "bf16"])
def test_the_rest_is_what_was_asked_for(rest: str, tmp_path: Path) -> None:
    recipe = models.with_quantization(models.recipe(tmp_path), rest=rest)
    (engine,) = trtbuild.build(recipe, tmp_path / "store").engines
    assert engine.precision_achieved == {"int8": 3}
    (errors,) = engine.verification.outputs
    assert errors.sqnr_db is not None
    assert errors.sqnr_db > 30


def test_a_rest_that_a_backend_lacks_is_refused(tmp_path: Path) -> None:
    recipe = models.with_quantization(models.recipe(tmp_path, "onnxruntime"), rest="fp16")
    with pytest.raises(
        RecipeError, match="onnxruntime computes around quantized layers in fp32"
    ):
        trtbuild.build(recipe, tmp_path / "store")


def test_int4_on_a_processor_reads_packed_weights(tmp_path: Path) -> None:
    recipe = models.with_quantization(
        transformer.recipe(tmp_path, "onnxruntime"), precision="int4", provider=None
    )
    (engine,) = trtbuild.build(recipe, tmp_path / "store").engines
    assert engine.weights_packed["int4"] >= 2


def test_a_model_without_matrices_has_nothing_to_pack(tmp_path: Path) -> None:
    recipe = models.with_quantization(models.recipe(tmp_path, "onnxruntime"), precision="int4")
    with pytest.raises(BuildError, match="no weight can be packed to int4"):
        trtbuild.build(recipe, tmp_path / "store")


def test_a_model_of_which_little_can_be_packed_says_so(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["map"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "head"], ["y"], name="head"),
    ]
    random = np.random.default_rng(0)
    constants = {
        "kernel": random.standard_normal((32, 3, 3, 3)).astype(np.float32),
        "head": random.standard_normal((32, 10)).astype(np.float32),
    }
    x, y = models.floats("x", "batch", 3, 8, 8), models.floats("y", "batch", 10)
    models.save(tmp_path / "model.onnx", nodes, constants, [x], [y])
    recipe = models.with_quantization(
        models.recipe(tmp_path, "onnxruntime"), precision="int4", provider=None
    )
    report = trtbuild.build(recipe, tmp_path / "store")
    (said,) = (found.text for found in report.findings if "multiply-accumulates" in found.text)
    assert said.startswith("only 1 % of the multiply-accumulates read int4 weights: ")
