"""Smoothing and equalization: the same function, activations that are easier to quantize."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.graph import models
from tests.quantization import networks
from trtbuild.backends import backend
from trtbuild.graph.optimize import optimize
from trtbuild.quantization.channel_statistics import channel_statistics
from trtbuild.quantization.migration import ALPHAS, migrated, tensors_to_measure
from trtbuild.quantization.moments import and_squares, moments_of, with_squares
from trtbuild.quantization.quantize import placement_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.graph.models import Array
    from trtbuild.graph import Graph

SCHEME = backend("tensorrt-rtx").SCHEME

TRANSFORMER = """transformer (float[N, 6, 16] x) => (float[N, 6, 16] y) {
    norm = LayerNormalization<axis = -1>(x, scale, shift)
    q = MatMul(norm, w_q)
    k = MatMul(norm, w_k)
    kb = Add(k, b_k)
    both = Add(q, kb)
    curved = Tanh(both)
    out = MatMul(curved, w_o)
    inner = Add(out, x)
    mean = ReduceMean<axes = [-1]>(inner)
    centered = Sub(inner, mean)
    squared = Mul(centered, centered)
    variance = ReduceMean<axes = [-1]>(squared)
    padded = Add(variance, epsilon)
    deviation = Sqrt(padded)
    divided = Div(centered, deviation)
    scaled = Mul(divided, scale)
    shifted = Add(scaled, shift)
    gate = MatMul(shifted, w_g)
    open = Sigmoid(gate)
    swish = Mul(gate, open)
    up = MatMul(shifted, w_u)
    gated = Mul(swish, up)
    down = MatMul(gated, w_d)
    y = Add(down, inner)
}"""
"""A LayerNormalization with fan-out, a Tanh that lets no scale pass, a LayerNormalization
written out, and a gated product whose one factor is linear."""

CHAIN = """chain (float[N, 4, 12, 12] x) => (float[N, 8, 4, 4] y) {
    first = Conv<pads = [1, 1, 1, 1]>(x, w_1, b_1)
    first_r = Relu(first)
    wise = Conv<pads = [1, 1, 1, 1], group = 16>(first_r, w_2, b_2)
    wise_r = LeakyRelu<alpha = 0.1>(wise)
    pool = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(wise_r)
    grouped = Conv<group = 2>(pool, w_3)
    six = Clip(grouped, zero, limit)
    y = Conv<kernel_shape = [3, 3]>(six, w_4)
}"""
"""A depthwise and a grouped convolution; behind the Clip no scale can be moved."""


def spread(number: int, seed: int) -> Array:
    """Return channels' magnitudes as training leaves them: some far above the others."""
    return np.asarray(np.exp(models.normal(number, seed=seed) * 1.5))


def transformer(folder: Path) -> Graph:
    shapes = {"w_q": (16, 16), "w_k": (16, 16), "w_o": (16, 16)}
    shapes |= {"w_g": (16, 24), "w_u": (16, 24), "w_d": (24, 16)}
    weights: dict[str, Array] = {
        name: models.normal(*shape, seed=index) / 4
        for index, (name, shape) in enumerate(shapes.items())
    }
    weights["w_u"] *= spread(24, 40)
    weights |= {"scale": spread(16, 41), "shift": models.normal(16, seed=42)}
    weights |= {"b_k": models.normal(16, seed=43), "epsilon": np.full(1, 1e-5, np.float32)}
    source = models.write(folder / "source.onnx", TRANSFORMER, weights)
    return optimize(source, folder / "transformer.onnx")[0]


def chain(folder: Path) -> Graph:
    weights = {
        "w_1": models.normal(16, 4, 3, 3, seed=1) * spread(16, 50).reshape(-1, 1, 1, 1) / 4,
        "b_1": models.normal(16, seed=2),
        "w_2": models.normal(16, 1, 3, 3, seed=3) * spread(16, 51).reshape(-1, 1, 1, 1) / 3,
        "b_2": models.normal(16, seed=4),
        "w_3": models.normal(8, 8, 1, 1, seed=5) / 3,
        "w_4": models.normal(8, 8, 3, 3, seed=6) / 8,
        "zero": np.zeros((), np.float32),
        "limit": np.full((), 6, np.float32),
    }
    source = models.write(folder / "source.onnx", CHAIN, weights)
    return optimize(source, folder / "chain.onnx")[0]


MAKE = {"smooth": transformer, "equalize": chain}


def data(technique: str, seed: int) -> Array:
    shape = (256, 6, 16) if technique == "smooth" else (64, 4, 12, 12)
    return models.normal(*shape, seed=seed)


def moved(
    graph: Graph, technique: str, folder: Path, batches: Sequence[Array] = ()
) -> tuple[Graph, int]:
    nodes = placement_of(graph, SCHEME, ()).nodes
    axes = tensors_to_measure(graph, nodes, technique)
    squares = with_squares(graph, axes, folder / "squares.onnx")
    feeds = [{"x": batch} for batch in batches or [data(technique, seed=8)]]
    found = channel_statistics(squares, and_squares(axes), feeds, folder, lambda _: None)
    out = folder / f"{technique}.onnx"
    return migrated(graph, nodes, technique, moments_of(found, axes), out)


@pytest.mark.parametrize("technique", MAKE)
def test_a_migrated_graph_computes_the_same_up_to_rounding(
    technique: str, tmp_path: Path
) -> None:
    graph = MAKE[technique](tmp_path)
    result, count = moved(graph, technique, tmp_path)
    feeds = {"x": data(technique, seed=9)}
    expected, got = (models.run(each.path, feeds)["y"] for each in (graph, result))
    assert count >= 2
    assert result.sha256 != graph.sha256
    assert models.sqnr_db(expected, got) > 110
    onnx.checker.check_model(str(result.path), full_check=True)


@pytest.mark.parametrize("technique", MAKE)
def test_a_migrated_graph_does_not_depend_on_batches_or_their_order(
    technique: str, tmp_path: Path
) -> None:
    graph, images = MAKE[technique](tmp_path), data(technique, seed=8)[:61]
    mixed = np.random.default_rng(3).permutation(images)
    cuts = [[images], np.split(images, [1, 3, 20]), [mixed], np.split(mixed, [33])]
    found = [moved(graph, technique, tmp_path, batches) for batches in cuts]
    assert found[0][1] >= 2
    assert len({result.sha256 for result, _ in found}) == 1
    other, _ = moved(graph, technique, tmp_path, [images[:30]])
    assert other.sha256 != found[0][0].sha256


@pytest.mark.parametrize("technique", MAKE)
def test_a_migrated_graph_loses_less_by_quantization(technique: str, tmp_path: Path) -> None:
    graph = MAKE[technique](tmp_path)
    result, _ = moved(graph, technique, tmp_path)
    feeds = {"x": data(technique, seed=9)}
    expected = models.run(graph.path, feeds)["y"]
    sqnr_db = []
    for index, each in enumerate((graph, result)):
        folder = tmp_path / str(index)
        folder.mkdir()
        network = networks.quantized(each, SCHEME, data(technique, seed=8))
        sqnr_db.append(models.sqnr_db(expected, models.run(network.path, feeds)["y"]))
    assert sqnr_db[1] > sqnr_db[0] + 1.5


def test_scale_moves_into_norms_and_linear_layers_and_is_added_elsewhere(
    tmp_path: Path,
) -> None:
    graph = transformer(tmp_path)
    result, _ = moved(graph, "smooth", tmp_path)
    before, after = (models.operators(each.path) for each in (graph, result))
    added = [node.name for node in onnx.load(result.path).graph.node if "smooth" in node.name]
    assert after.count("Mul") == before.count("Mul") + len(added)
    assert set(added) <= {"curved.smooth"}


def test_what_has_other_readers_or_a_clip_before_it_is_left_alone(tmp_path: Path) -> None:
    graph = chain(tmp_path)
    nodes = placement_of(graph, SCHEME, ()).nodes
    assert set(tensors_to_measure(graph, nodes, "equalize")) == {"first_r", "pool"}
    without_reader = [name for name in nodes if name != "Conv_2"]
    assert set(tensors_to_measure(graph, without_reader, "equalize")) == {"pool"}


def test_the_factor_is_that_of_smoothquant_for_one_alpha(tmp_path: Path) -> None:
    """Xiao et al. 2023, equation 4, written as they do; ours is that times one number."""
    graph = transformer(tmp_path)
    result, _ = moved(graph, "smooth", tmp_path)
    old, new = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(each.path).graph.initializer}
        for each in (graph, result)
    )
    x = np.abs(networks.observed(graph, "norm", data("smooth", seed=8)))
    x = x.max(axis=(0, 1))
    w = np.abs(np.concatenate([old["w_q"], old["w_k"]], axis=1)).max(axis=1)
    factor = old["scale"] / new["scale.moved"]
    fits = [np.ptp(np.log(factor / (x**alpha / w ** (1 - alpha)))) < 1e-4 for alpha in ALPHAS]
    assert sum(fits) == 1
