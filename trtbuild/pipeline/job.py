"""The two jobs that commands and Python callers ask for: build a recipe, verify an engine.

A full cache hit is answered here. What does the work is imported only on a miss, inside the
functions: this module is a door (``docs/decisions/0005-memo-and-doors.md``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.backends import runtime
from trtbuild.engine import Manifest
from trtbuild.errors import TrustError
from trtbuild.pipeline.recall import question_of, recall
from trtbuild.pipeline.targets import Plan, Planned, plan_targets
from trtbuild.recipe import recipe_from_json
from trtbuild.store import Store, find_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.recipe import Recipe
    from trtbuild.report.document import Report


def quiet(_: str) -> None:
    """Say nothing of what begins."""


def build_recipe(
    recipe: Recipe,
    store: str,
    *,
    strict: bool = False,
    say: Callable[[str], None] = quiet,
) -> Report:
    """Return the report of a recipe: of an earlier run if nothing changed, else of one now.

    With ``strict`` a target that cannot be built here is an error. ``say`` is told in a few
    words what begins.

    Raises:
        TrtbuildError: anything that a user must correct.
    """
    opened = Store.open(store)
    plan = plan_targets(recipe, strict=strict)
    known = recall(opened, question_of(recipe, plan))
    if known is not None:
        return known
    from trtbuild.pipeline.run import Work, run

    return run(Work(recipe=recipe, plan=plan, store=opened, say=say))


def verify_engine(
    engine: str,
    store: str,
    recipe: Recipe | None = None,
    *,
    say: Callable[[str], None] = quiet,
) -> Report:
    """Measure an engine of the store anew and return the report, gates judged.

    ``recipe`` says where model and data are; without it, it is the one the engine was built
    for first.

    Raises:
        TrtbuildError: anything that a user must correct.
    """
    opened = Store.open(store)
    manifest = find_engine(opened, engine).read(Manifest)
    given = recipe or recipe_from_json(manifest.recipe)
    if given.quantization.precision != manifest.precision_requested:
        raise TrustError(
            f"engine {manifest.key[:12]} is {manifest.precision_requested}, the recipe "
            f"{given.name} asks for {given.quantization.precision}. Give its own recipe"
        )
    target = manifest.preimage.target
    planned = Planned(
        target=target,
        required=True,
        cannot_run=runtime(target.backend).cannot_run(target),
        settings=manifest.preimage.settings,
        fingerprint=manifest.preimage.fingerprint,
    )
    from trtbuild.pipeline.run import Work, verify

    plan = Plan(planned=(planned,), skipped=())
    work = Work(recipe=given, plan=plan, store=opened, say=say, fresh=True)
    return verify(work, manifest)
