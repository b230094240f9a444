"""What there is to build: recipes times targets, and which of them the store has already.

Nothing is computed here: recipes are read, files are hashed, records are looked up.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Literal

from msgspec.structs import replace

from trtbuild.backends import backend
from trtbuild.engine import Value
from trtbuild.errors import MissingBackendError, RecipeError, UsageError
from trtbuild.pipeline.building import with_pinned
from trtbuild.pipeline.recall import question_of, recall
from trtbuild.pipeline.targets import default_targets, plan_targets
from trtbuild.recipe import load_recipe
from trtbuild.report.document import Report, SkippedTarget, SourceReport

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.errors import TrtbuildError
    from trtbuild.recipe import Recipe
    from trtbuild.store import Store

State = Literal["cached", "to build", "skipped"]


class Cell(Value, frozen=True, kw_only=True):
    """One target of a recipe; ``reason`` says why it is skipped, or is empty.

    ``to build``: something that its report depends on has changed. Stages and engines that did
    not change are not made again.
    """

    target: str
    state: State
    reason: str = ""


class Failure(Value, frozen=True, kw_only=True):
    """Why a recipe has no report, and what the command would leave with for it alone."""

    message: str
    exit_code: int


class RecipePlan(Value, frozen=True, kw_only=True):
    """What a recipe needs on this machine.

    ``report`` is what is known without building: that of an earlier run if nothing changed, or
    one without engines if no target can be built here. ``failure`` is set, and there are no
    cells, if the recipe is wrong.
    """

    recipe: str
    path: str
    cells: tuple[Cell, ...] = ()
    report: Report | None = None
    failure: Failure | None = None


def find_recipes(folder: Path, only: str) -> tuple[Path, ...]:
    """Return the recipe files of ``folder`` whose name matches the pattern ``only``, sorted.

    Raises:
        UsageError: there is no such folder, recipe or match.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; expected one with recipes (*.toml)")
    paths = sorted(path for path in folder.glob("*.toml") if path.is_file())
    if not paths:
        raise UsageError(f"{folder}: holds no recipe; expected one file NAME.toml per engine")
    found = tuple(path for path in paths if fnmatch.fnmatchcase(path.stem, only))
    if not found:
        names = ", ".join(path.stem for path in paths)
        raise UsageError(f"--only {only}: matches no recipe of {folder}; it has: {names}")
    return found


def plan_recipe(path: Path, store: Store) -> RecipePlan:
    """Return what the recipe in a file needs; one that is wrong is a plan with a failure.

    Raises:
        StoreError: the store cannot be read.
    """
    plan = RecipePlan(recipe=path.stem, path=str(path))
    try:
        recipe = load_recipe(path)
    except RecipeError as error:
        return _failed(plan, error)
    try:
        targets = with_pinned(plan_targets(recipe, strict=False), store)
    except MissingBackendError as error:
        return _nothing_to_build(plan, recipe, error)
    except (RecipeError, UsageError) as error:
        return _failed(plan, error)
    report = recall(store, question_of(recipe, targets))
    if report is not None:
        return _known(plan, report)
    building = (Cell(target=str(item.target), state="to build") for item in targets.planned)
    skipped = (_skip(item.target, item.reason) for item in targets.skipped)
    return replace(plan, cells=(*building, *skipped))


def _known(plan: RecipePlan, report: Report) -> RecipePlan:
    cached = (Cell(target=engine.target, state="cached") for engine in report.engines)
    skipped = (_skip(item.target, item.reason) for item in report.skipped_targets)
    return replace(plan, cells=(*cached, *skipped), report=report)


def _nothing_to_build(
    plan: RecipePlan, recipe: Recipe, error: MissingBackendError
) -> RecipePlan:
    """Return a plan whose targets are all skipped, each with its own reason."""
    words = (word.partition(":") for word in recipe.build.targets or default_targets())
    cells = [
        _skip(str(found.target), found.cannot_build or str(error))
        for name, _, arch in words
        for found in backend(name).targets((arch,) if arch else ())
    ]
    skipped = tuple(SkippedTarget(target=each.target, reason=each.reason) for each in cells)
    source = SourceReport(framework=recipe.source.framework, digest="")
    report = Report(
        recipe=recipe.name, source=source, stages=(), engines=(), skipped_targets=skipped
    )
    return replace(plan, cells=tuple(cells), report=report)


def _failed(plan: RecipePlan, error: TrtbuildError) -> RecipePlan:
    return replace(plan, failure=Failure(message=str(error), exit_code=error.exit_code))


def _skip(target: str, reason: str) -> Cell:
    return Cell(target=target, state="skipped", reason=reason)
