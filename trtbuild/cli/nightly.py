"""``trtbuild nightly``: all recipes of a folder, only what changed, one verdict."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtbuild.cli.engine import MarkdownOption
from trtbuild.cli.options import JsonOption, OfflineOption, QuietOption, StoreOption

if TYPE_CHECKING:
    from trtbuild.farm.matrix import RecipePlan
    from trtbuild.farm.nightly import Night
    from trtbuild.farm.summary import Summary
    from trtbuild.store import Store

_FORMATS = ("table", "json", "github-matrix", "gitlab")
_JOB_SUMMARY = "GITHUB_STEP_SUMMARY"


def nightly(  # noqa: PLR0913  one parameter per option is how Typer works
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Holds recipes (*.toml).")],
    *,
    only: Annotated[
        str, typer.Option("--only", metavar="GLOB", help="Recipes with such a name only.")
    ] = "*",
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be built; build nothing.")
    ] = False,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="|".join(_FORMATS), help="Of --plan."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML here.")
    ] = None,
    markdown: MarkdownOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="A skipped target fails the night (exit code 5).")
    ] = False,
    store: StoreOption = "",
    _offline: OfflineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Build and verify every recipe and target of a folder that the store does not have.

    Leaves with 5 if a gate failed, else with the largest exit code of a recipe in error. In a
    plan for GitHub or GitLab a recipe in error is a job, which fails alone.
    """
    from trtbuild.cli.output import speaker
    from trtbuild.farm.matrix import find_recipes, plan_recipe
    from trtbuild.farm.nightly import run_night
    from trtbuild.store import Store

    shown = _format(form, plan=plan, as_json=as_json)
    if plan and (junit or markdown or strict):
        _refuse("--junit, --markdown and --strict are about what was built: drop --plan")
    paths = find_recipes(folder, only)
    opened = Store.open(store)
    if plan:
        _print_plan([plan_recipe(path, opened) for path in paths], shown, folder)
        return
    say = speaker(quiet=quiet)
    opened = opened.settled(say)
    job_summary = os.environ.get(_JOB_SUMMARY)
    for file in (junit, markdown, Path(job_summary) if job_summary else None):
        if file is not None:
            _make_writable(file)
    night = run_night(paths, opened, strict=strict, say=say)
    _write(night, junit, markdown)
    _print_night(night, opened, as_json=as_json)
    raise typer.Exit(night.exit_code)


def _format(form: str | None, *, plan: bool, as_json: bool) -> str:
    if form is not None and not plan:
        _refuse("--format is of --plan: give both")
    if form is not None and form not in _FORMATS:
        _refuse(f"--format {form}: expected one of {', '.join(_FORMATS)}")
    if as_json and form not in (None, "json"):
        _refuse(f"--json and --format {form} ask for two documents: give one")
    return "json" if as_json else form or "table"


def _refuse(message: str) -> None:
    from trtbuild.errors import UsageError

    raise UsageError(message)


def _make_writable(file: Path) -> None:
    """Find out before the night, not after it, that its result cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    except OSError as error:
        _refuse(f"{file}: cannot be written: {error.strerror}. Give another file")


def _print_plan(plans: list[RecipePlan], form: str, folder: Path) -> None:
    from msgspec.json import encode

    from trtbuild.cli.output import print_json
    from trtbuild.farm import ci, summary

    if form == "github-matrix":
        # One line, as GITHUB_OUTPUT takes it.
        typer.echo(encode(ci.github_matrix(plans)))
        return
    if form == "gitlab":
        print_json(ci.gitlab_pipeline(plans, folder))
        return
    if form == "json":
        print_json({"schema": 1, "recipes": [_entry(plan) for plan in plans]})
    else:
        _print_summary(summary.of_plan(plans))
    raise typer.Exit(max(plan.failure.exit_code if plan.failure else 0 for plan in plans))


def _entry(plan: RecipePlan) -> dict[str, object]:
    return {
        "recipe": plan.recipe,
        "path": plan.path,
        "targets": plan.cells,
        "failure": plan.failure,
    }


def _print_night(night: Night, store: Store, *, as_json: bool) -> None:
    from trtbuild.cli.output import print_json
    from trtbuild.farm import summary

    if as_json:
        print_json(night)
    else:
        _print_summary(summary.of_night(night))
    for incident in store.incidents:
        typer.echo(f"warning: {incident.path}: {incident.reason}", err=True)


def _print_summary(summary: Summary) -> None:
    from trtbuild.report.terminal import print_section

    typer.echo(summary.heading)
    for section in summary.sections:
        typer.echo()
        print_section(section, sys.stdout)
    typer.echo(f"\n{summary.ending}")


def _write(night: Night, junit: Path | None, markdown: Path | None) -> None:
    """Write the files that were asked for, and the summary of the job that GitHub shows."""
    from trtbuild.farm.summary import night_to_markdown
    from trtbuild.report.junit import to_junit

    if junit is not None:
        errors = {name: failure.message for name, failure in night.failures.items()}
        junit.write_bytes(to_junit(night.reports, errors))
    job_summary = os.environ.get(_JOB_SUMMARY)
    if markdown is not None:
        markdown.write_text(night_to_markdown(night), encoding="utf-8")
    if job_summary:
        with Path(job_summary).open("a", encoding="utf-8") as file:
            file.write(night_to_markdown(night))
