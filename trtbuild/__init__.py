"""trtbuild: from a model in its own framework to a tested, cached inference engine.

The functions here are doors: they import what they need when they are called, so that
``import trtbuild`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild import errors

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.backends import Session
    from trtbuild.recipe import Recipe
    from trtbuild.report.document import Report

__version__ = "0.1.0"

__all__ = ["__version__", "build", "errors", "load", "verify"]


def build(recipe: str | Path | Recipe, store: str | Path = "") -> Report:
    """Build, store and verify the engines of a recipe; return the report, gates judged.

    ``recipe`` is the path of a ``.toml`` file or a :class:`trtbuild.recipe.Recipe`. A failed
    gate is in the report (``report.passed``), not an exception.

    Raises:
        TrtbuildError: anything that a user must correct.
    """
    from trtbuild.pipeline.job import build_recipe
    from trtbuild.recipe import Recipe, load_recipe

    given = recipe if isinstance(recipe, Recipe) else load_recipe(_path(recipe))
    return build_recipe(given, str(store))


def verify(engine: str | Path, store: str | Path = "") -> Report:
    """Compare an engine with its original framework again, time it, and judge its gates.

    ``engine`` is a digest, a key, a prefix of one, or the path of an engine's file.

    Raises:
        TrtbuildError: anything that a user must correct.
    """
    from trtbuild.pipeline.job import verify_engine

    return verify_engine(str(engine), str(store))


def load(engine: str | Path, store: str | Path = "") -> Session:
    """Return a session of an engine: ``session.run({name: array}) -> {name: array}``.

    Digest and target are checked before any byte reaches a runtime. Safe to share by threads.

    Raises:
        TrtbuildError: the engine is unknown, damaged, or not for this machine.
    """
    from trtbuild.runtime import load as loading

    return loading.load(engine, str(store))


def _path(text: str | Path) -> Path:
    from pathlib import Path

    return Path(text)
