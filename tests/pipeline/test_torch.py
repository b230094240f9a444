"""Whole runs from PyTorch: what a factory reads is noticed, what it prints stays off stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.pipeline import models
from trtbuild import build
from trtbuild.recipe import Source

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.frameworks

FACTORY = """
import torch
from safetensors.torch import load_file
import layers

def model():
    network = layers.Network()
    network.load_state_dict(load_file("{folder}/weights.safetensors"))
    return network.eval()
"""

LAYERS = """
import torch

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.stem(x).relu().mean((2, 3))
"""


@pytest.mark.rtx
def test_a_changed_weight_or_local_import_of_a_factory_is_noticed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    state = {
        "stem.weight": random.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "stem.bias": np.zeros(8, np.float32),
    }
    save_file(state, tmp_path / "weights.safetensors")
    (tmp_path / "layers.py").write_text(LAYERS)
    (tmp_path / "factory.py").write_text(FACTORY.format(folder=tmp_path))
    recipe = msgspec.structs.replace(
        models.recipe(tmp_path), source=Source(torch="factory.py:model")
    )
    digests = [build(recipe, tmp_path / "store").source.digest]
    assert build(recipe, tmp_path / "store").full_cache_hit

    state = load_file(tmp_path / "weights.safetensors")
    state["stem.bias"][0] = 1.0
    save_file(state, tmp_path / "weights.safetensors")
    second = build(recipe, tmp_path / "store")
    assert models.computed(second)[0] == "export"
    digests.append(second.source.digest)

    (tmp_path / "layers.py").write_text(LAYERS.replace("relu", "tanh"))
    digests.append(build(recipe, tmp_path / "store").source.digest)
    assert len(set(digests)) == 3

    (tmp_path / "layers.py").write_text(LAYERS)
    assert build(recipe, tmp_path / "store").source.digest == digests[1]
