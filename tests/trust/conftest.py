from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

import trtbuild
from tests.pipeline import models
from trtbuild.runtime.made_here import mark_made
from trtbuild.store import Store

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


@pytest.fixture
def place(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own folders, with a copy of a store with one unsigned engine."""
    shutil.copytree(built, tmp_path / "store")
    for name, folder in (
        ("TRTBUILD_STORE", "store"),
        ("TRTBUILD_STATE", "state"),
        ("XDG_CONFIG_HOME", "config"),
    ):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.chdir(tmp_path)
    for record in Store.open("").records("engine"):
        assert not mark_made(record)
    return tmp_path
