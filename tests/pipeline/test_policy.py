"""A budget finds by itself what must stay in floating point, and a policy can be committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

import trtbuild
from tests.pipeline import models
from trtbuild.errors import RecipeError
from trtbuild.recipe import Gates
from trtbuild.report.policy_text import policy_text

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.recipe import Recipe

INNER = "inner [1]"
"""A name as exporters write them, which is no shell pattern of itself."""

BUDGET = 0.012
"""Between what INT8 costs without ``INNER`` and with it, in the unit of the metric."""


def outlier(path: Path) -> Path:
    """Write four layers of which ``INNER`` reads a channel of 300 that it does not use."""
    constants = models.weights(0)
    constants["b0"] = np.where(np.arange(models.CHANNELS) == 0, 300.0, 0.0).astype(np.float32)
    constants["w3"] = models.weights(3)["w1"]
    constants["w1"][:, 0] = 0.0
    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="stem", pads=pads),
        helper.make_node("Relu", ["c0"], ["r0"], name="stem_relu"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], name=INNER, pads=pads),
        helper.make_node("Relu", ["c1"], ["r1"], name="inner_relu"),
        helper.make_node("Conv", ["r1", "w3"], ["c2"], name="last", pads=pads),
        helper.make_node("Relu", ["c2"], ["r2"], name="last_relu"),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w2", "b2"], ["y"], name="head", transB=1),
    ]
    inputs = [models.floats("x", "batch", *models.IMAGE)]
    outputs = [models.floats("y", "batch", models.CLASSES)]
    return models.save(path, nodes, constants, inputs, outputs)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    outlier(tmp_path / "model.onnx")
    found = models.with_metric(models.recipe(tmp_path))
    return models.with_gates(found, Gates(max_drop=BUDGET))


def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_the_search_keeps_the_node_that_costs_the_metric_and_no_other(
    recipe: Recipe, tmp_path: Path
) -> None:
    everything = trtbuild.build(models.with_quantization(recipe, policy="all"), store(tmp_path))
    assert everything.exit_code == 5
    assert everything.policies == ()

    report = trtbuild.build(recipe, store(tmp_path))
    (policy,) = report.policies
    assert (policy.source, policy.budget_met) == ("search", True)
    assert [node.node for node in policy.kept] == [INNER]
    assert report.passed, "the gate agrees, on other batches where there are any"
    assert report.engines[0].int8_mac_share == pytest.approx(policy.mac_share, abs=1e-4)
    assert [trial.inside for trial in policy.trials if trial.kept == 0] == [False]
    assert trtbuild.build(recipe, store(tmp_path)).full_cache_hit

    named = models.with_quantization(recipe, policy="all", keep_float=(INNER,))
    same = trtbuild.build(named, store(tmp_path))
    assert same.engines[0].sha256 == report.engines[0].sha256
    assert [(p.source, p.kept[0].node) for p in same.policies] == [("recipe", INNER)]


def test_the_method_is_chosen_again_without_what_a_found_policy_keeps(
    recipe: Recipe, tmp_path: Path
) -> None:
    auto = models.with_quantization(recipe, method="auto")
    found = trtbuild.build(auto, store(tmp_path))
    named = models.with_quantization(auto, policy="all", keep_float=(INNER,))
    by_hand = trtbuild.build(named, store(tmp_path))
    (chosen,) = (row for row in found.calibration if row.chosen)
    assert chosen.method.endswith(", policy's nodes kept")
    (best,) = (row for row in by_hand.calibration if row.chosen)
    assert chosen.method == f"{best.method}, policy's nodes kept"
    assert found.engines[0].sha256 == by_hand.engines[0].sha256


def test_a_found_policy_is_a_file_that_gives_the_same_engine_without_a_search(
    recipe: Recipe, tmp_path: Path
) -> None:
    found = trtbuild.build(recipe, store(tmp_path))
    path = tmp_path / "policy.toml"
    path.write_text(policy_text("classifier", "int8", found.policies))
    committed = models.with_quantization(recipe, policy="policy.toml")
    report = trtbuild.build(committed, store(tmp_path))
    assert report.engines[0].sha256 == found.engines[0].sha256
    assert not {"sensitivity", "policy"} & {stage.name.split()[0] for stage in report.stages}
    assert trtbuild.build(committed, store(tmp_path)).full_cache_hit

    path.write_text(path.read_text() + '"head" = "fp32"\n')
    edited = trtbuild.build(committed, store(tmp_path))
    assert {"quantize", "build", "verify"} <= set(models.computed(edited))
    assert not {"calibrate", "sensitivity", "policy"} & set(models.computed(edited))
    assert {node.node for node in edited.policies[0].kept} == {INNER, "head"}

    path.write_text('[policy]\ndefault = "int8"\n[policy.nodes]\n"inward" = "rest"\n')
    with pytest.raises(RecipeError, match=r"policy\.toml: .*'inward'.*'?inner"):
        trtbuild.build(committed, store(tmp_path))


def test_a_budget_that_no_policy_meets_is_proved_and_fails(
    recipe: Recipe, tmp_path: Path
) -> None:
    report = trtbuild.build(models.with_gates(recipe, Gates(max_drop=0.0)), store(tmp_path))
    (policy,) = report.policies
    assert not policy.budget_met
    assert not any(trial.inside for trial in policy.trials)
    assert {trial.kept for trial in policy.trials} == {0, 3}
    drops = [trial.drop.value for trial in policy.trials if trial.drop]
    assert min(drops) > 0
    assert report.exit_code == 5
    assert "no policy is inside 0" in policy.reason


def test_without_a_metric_nothing_is_searched_and_the_report_says_so(tmp_path: Path) -> None:
    recipe = models.with_gates(models.recipe(tmp_path), Gates(max_drop=0.1))
    report = trtbuild.build(recipe, store(tmp_path))
    assert report.policies == ()
    assert any("no policy was searched for" in finding.text for finding in report.findings)


def test_fp32_in_a_policy_is_fp32_also_where_the_rest_is_fp16(tmp_path: Path) -> None:
    """The graph says so; the builder may load such a layer's values in FP16 all the same."""
    engines = {}
    for word in ("fp32", "rest"):
        (tmp_path / "policy.toml").write_text(
            f'[policy]\ndefault = "int8"\n[policy.nodes]\n"inner" = "{word}"\n'
        )
        recipe = models.with_quantization(models.recipe(tmp_path), policy="policy.toml")
        report = trtbuild.build(recipe, store(tmp_path))
        engines[word] = report.engines[0].sha256
        kept = [each.text for each in report.findings if "'inner' stays in FP32" in each.text]
        assert bool(kept) == (word == "fp32")
    assert engines["fp32"] != engines["rest"]
