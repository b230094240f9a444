"""Run the recipes of a night, one after the other, and judge the whole."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Literal

from msgspec.structs import force_setattr, replace

from trtbuild.engine import Value
from trtbuild.errors import GateError
from trtbuild.farm import child
from trtbuild.farm.matrix import Failure, plan_recipe
from trtbuild.pipeline.job import with_signatures
from trtbuild.report.document import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from trtbuild.store import Store


class Outcome(Value, frozen=True, kw_only=True):
    """What became of one recipe: a report, or the failure that kept it from having one.

    ``seconds`` is the wall time that it took, also when all of it was cached.
    """

    recipe: str
    path: str
    seconds: float
    report: Report | None = None
    failure: Failure | None = None


class Night(Value, frozen=True, kw_only=True):
    """All outcomes. ``strict``: a target that was skipped fails the night.

    ``exit_code`` is 5 if a gate failed or, with ``strict``, a target was skipped; else the
    largest of the recipes that failed; else 0. It and ``passed`` follow from the outcomes.
    """

    strict: bool
    outcomes: tuple[Outcome, ...]
    schema: Literal[1] = 1
    exit_code: int = 0
    passed: bool = False

    def __post_init__(self) -> None:
        """Derive ``exit_code`` and ``passed``."""
        code = max((each.exit_code for each in self.failures.values()), default=0)
        skipped = any(report.skipped_targets for report in self.reports)
        if not all(report.passed for report in self.reports) or (self.strict and skipped):
            code = GateError.exit_code
        force_setattr(self, "exit_code", code)
        force_setattr(self, "passed", code == 0)

    @property
    def reports(self) -> tuple[Report, ...]:
        """The reports of the recipes that have one, in the order of the night."""
        return tuple(each.report for each in self.outcomes if each.report is not None)

    @property
    def failures(self) -> dict[str, Failure]:
        """The failures by recipe, in the order of the night."""
        found = {each.recipe: each.failure for each in self.outcomes}
        return {name: failure for name, failure in found.items() if failure is not None}


def run_night(
    paths: Iterable[Path], store: Store, *, strict: bool, say: Callable[[str], None]
) -> Night:
    """Build and verify what the store does not have; whatever a recipe does, the next one runs.

    ``say`` is told in a few words what begins.

    Raises:
        StoreError: the store cannot be used.
    """
    outcomes = tuple(_outcome(path, store, say) for path in paths)
    return Night(strict=strict, outcomes=outcomes)


def _outcome(path: Path, store: Store, say: Callable[[str], None]) -> Outcome:
    started = time.monotonic()
    plan = plan_recipe(path, store)
    outcome = Outcome(
        recipe=plan.recipe,
        path=plan.path,
        seconds=0.0,
        report=plan.report and with_signatures(store, plan.report),
        failure=plan.failure,
    )
    if plan.report is None and plan.failure is None:
        say(plan.recipe)
        found = child.build(
            path, store.uri or str(store.root), partial(_relay, say, plan.recipe)
        )
        change = {"failure" if isinstance(found, Failure) else "report": found}
        outcome = replace(outcome, **change)
    say(f"{plan.recipe} {_word(outcome)}")
    return replace(outcome, seconds=time.monotonic() - started)


def _word(outcome: Outcome) -> str:
    report = outcome.report
    if report is None:
        return "is in error"
    if not report.engines:
        return "is skipped"
    cached = " (full cache hit)" if report.full_cache_hit else ""
    return f"{'passed' if report.passed else 'FAILED a gate'}{cached}"


def _relay(say: Callable[[str], None], recipe: str, line: str) -> None:
    say(f"{recipe} | {line}")
