"""trtbuild: from a model in its own framework to a tested, cached inference engine.

The functions here are doors: they import what they need when they are called, so that
``import trtbuild`` costs nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trtbuild import errors

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.backends.session import LoadedSession
    from trtbuild.recipe import Recipe
    from trtbuild.report.document import Report

# ONNX Runtime 1.29 and later tells Microsoft of each model that it opens (names, digests of
# graph and weights), and keeps an identifier in the user's cache folder. It reads this once,
# when it is imported; see docs/decisions/0019-no-telemetry.md.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

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


def load(  # noqa: PLR0913  the door of services: each keyword is one decision of theirs
    engine: str | Path,
    store: str | Path = "",
    *,
    contexts: int = 0,
    cuda_graphs: bool = True,
    warmup: int = 3,
    weight_budget_mib: int = 0,
    allow_host_code: bool = False,
    device: int = -1,
    policy: str | Path = "",
    lock: str | Path = "",
    model: str = "",
) -> LoadedSession:
    """Return a session of an engine: ``session.run({name: array}) -> {name: array}``.

    Signatures, policy, digest, target, GPU, driver, versions and memory are checked before any
    byte reaches a runtime. Safe to share by threads; close it with ``close()`` or ``with``.

    ``contexts`` is how many calls run at once (0: what the backend takes for right), ``warmup``
    how often each context runs in the ``opt`` shapes of every profile before this returns; a
    CUDA graph is captured in the third run, so that the first caller gets one. ``cuda_graphs``
    lets a GPU replay whole calls. ``weight_budget_mib`` is device memory for an engine that
    streams its weights (0: chosen by TensorRT). ``allow_host_code`` lets a version-compatible
    engine bring its own runtime. ``device`` is a GPU's number (-1: the first that fits).

    ``policy`` is a file (default: ``TRTBUILD_POLICY``, then the user's own; without one,
    engines that you built on this machine are loaded unsigned, with a warning). ``lock`` is a
    lockfile that pins what may be loaded; ``engine`` can be a model's name then. ``model`` is
    what the engine must have been signed as (default: the lockfile's name of it, without one
    the name of the recipe that built it), so that no signer chooses the rules that it meets.

    Raises:
        TrtbuildError: the engine is unknown, damaged, not allowed, or not for this machine.
    """
    from trtbuild.backends.session import SessionOptions
    from trtbuild.runtime import load as loading
    from trtbuild.runtime.admission import Terms

    options = SessionOptions(
        contexts=contexts,
        cuda_graphs=cuda_graphs,
        weight_budget_mib=weight_budget_mib,
        allow_host_code=allow_host_code,
        device=device,
    )
    terms = Terms(policy=str(policy), lock=str(lock), model=model)
    return loading.load(engine, str(store), options=options, warmup_runs=warmup, terms=terms)


def _path(text: str | Path) -> Path:
    from pathlib import Path

    return Path(text)
