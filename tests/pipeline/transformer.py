"""A small feed-forward block of a transformer, with products of every form, and its recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import helper

from tests.pipeline import models
from trtbuild.recipe import Build, Quantization, Recipe, Source

if TYPE_CHECKING:
    from pathlib import Path

    from tests.pipeline.models import Array

WIDTH = 64


def write(path: Path, hidden: int = 256, gain: float = 1.0) -> Path:
    """Write ``x`` [batch, 64] to ``y`` [batch, 10]; ``gain`` scales what goes in between."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        scale = np.sqrt(shape[0] if len(shape) > 1 else 100)
        return np.asarray(random.standard_normal(shape) / scale, np.float32)

    constants = {
        "up_w": normal(WIDTH, hidden) * np.float32(gain),
        "up_b": normal(hidden),
        "down_w": np.ascontiguousarray(normal(hidden, WIDTH).T),
        "down_b": normal(WIDTH),
        "one": np.ones(WIDTH, np.float32),
        "zero": np.zeros(WIDTH, np.float32),
        "head_w": normal(WIDTH, 10),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "up_w"], ["up"], name="up"),
        helper.make_node("Add", ["up", "up_b"], ["up_sum"], name="up_bias"),
        helper.make_node("Relu", ["up_sum"], ["hidden"], name="relu"),
        helper.make_node(
            "Gemm", ["hidden", "down_w", "down_b"], ["down"], name="down", transB=1
        ),
        helper.make_node("Add", ["down", "x"], ["sum"], name="residual"),
        helper.make_node("LayerNormalization", ["sum", "one", "zero"], ["norm"], name="norm"),
        helper.make_node("MatMul", ["norm", "head_w"], ["y"], name="head"),
    ]
    x, y = models.floats("x", "batch", WIDTH), models.floats("y", "batch", 10)
    return models.save(path, nodes, constants, [x], [y])


def inputs(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def recipe(folder: Path, target: str, gain: float = 1.0) -> Recipe:
    """Return the recipe of the block in INT8, its model and data written to ``folder``."""
    write(folder / "model.onnx", gain=gain)
    np.savez(folder / "data.npz", x=inputs(40))
    return Recipe(
        name="transformer",
        folder=folder,
        source=Source(onnx="model.onnx"),
        quantization=Quantization(precision="int8", provider="data.npz", method="minmax"),
        build=Build(targets=(target,)),
    )
