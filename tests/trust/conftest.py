from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import trtbuild
from tests.pipeline import models

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with one real engine for this processor; not to be changed."""
    folder = tmp_path_factory.mktemp("trust")
    recipe = models.recipe(folder, "onnxruntime")
    recipe = models.with_quantization(recipe, precision="fp32", provider=None)
    trtbuild.build(recipe, folder / "store")
    return folder / "store"
