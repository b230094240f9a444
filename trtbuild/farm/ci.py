"""A plan as CI systems take it: one job for every recipe that is not cached.

A recipe in error gets a job as well, which then fails with its message and holds up no other.
"""

from __future__ import annotations

import glob
import shlex
from typing import TYPE_CHECKING

from trtbuild.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from trtbuild.farm.matrix import RecipePlan

GITHUB_JOBS = 256
"""The most jobs that a matrix may generate (GitHub, "Workflow syntax", strategy.matrix)."""

_STAGE = "engines"


def github_matrix(plans: Iterable[RecipePlan]) -> dict[str, list[dict[str, str]]]:
    """Return a value for ``strategy.matrix``: ``include`` with one entry for each job.

    An entry has ``recipe`` (its name), ``only`` (the pattern that selects it alone), ``path``
    and ``targets`` (those to build, with commas). GitHub refuses a matrix without entries: the
    job needs the condition ``fromJSON(...).include[0]``.

    Raises:
        UsageError: there are more jobs than GitHub runs.
    """
    jobs = _jobs(plans)
    if len(jobs) > GITHUB_JOBS:
        raise UsageError(
            f"--format github-matrix: {len(jobs)} recipes are to build, a matrix may have "
            f"{GITHUB_JOBS} jobs; make several with --only"
        )
    entries = [
        {
            "recipe": plan.recipe,
            "only": glob.escape(plan.recipe),
            "path": plan.path,
            "targets": ",".join(c.target for c in plan.cells if c.state == "to build"),
        }
        for plan in jobs
    ]
    return {"include": entries}


def gitlab_pipeline(plans: Iterable[RecipePlan], folder: Path) -> dict[str, object]:
    """Return a child pipeline: JSON, which is YAML, for ``trigger: include: artifact``.

    GitLab refuses a pipeline without jobs, so one says that there is nothing to build.
    """
    pipeline: dict[str, object] = {"stages": [_STAGE]}
    jobs = _jobs(plans)
    for plan in jobs:
        junit = f"junit-{plan.recipe}.xml"
        arguments = ["nightly", str(folder), "--only", glob.escape(plan.recipe)]
        pipeline[f"engine {plan.recipe}"] = {
            "stage": _STAGE,
            "script": [shlex.join(["trtbuild", *arguments, "--junit", junit])],
            "artifacts": {"when": "always", "reports": {"junit": junit}},
        }
    if not jobs:
        script = ["echo 'every engine is in the store'"]
        pipeline["nothing to build"] = {"stage": _STAGE, "script": script}
    return pipeline


def _jobs(plans: Iterable[RecipePlan]) -> list[RecipePlan]:
    return [
        plan
        for plan in plans
        if plan.failure or any(cell.state == "to build" for cell in plan.cells)
    ]
