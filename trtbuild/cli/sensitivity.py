"""``trtbuild sensitivity``: what the quantization of each node costs, and a policy from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtbuild.cli.engine import (
    BackendOption,
    CalibrationOption,
    EvaluationOption,
    KeepFloatOption,
    MethodOption,
    ShapeOption,
    SourceArgument,
)
from trtbuild.cli.options import JsonOption, OfflineOption, QuietOption, StoreOption, finite

if TYPE_CHECKING:
    from trtbuild.cli.request import Arguments
    from trtbuild.recipe import Recipe
    from trtbuild.report.document import PolicyReport
    from trtbuild.report.sensitivities import SensitivityReport

PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="int8|fp8",
        help="What nodes are quantized to; int8 where the recipe quantizes to neither.",
    ),
]


def sensitivity(  # noqa: PLR0913  one parameter per option is how Typer works
    source: SourceArgument,
    *,
    precision: PrecisionOption = None,
    backend: BackendOption = None,
    calibration: CalibrationOption = None,
    evaluation: EvaluationOption = None,
    method: MethodOption = None,
    shape: ShapeOption = None,
    keep_float: KeepFloatOption = None,
    runs: Annotated[
        int, typer.Option(min=0, help="Most groups of nodes to measure (0: 2 sqrt(n) + 4).")
    ] = 0,
    max_drop: Annotated[
        float | None,
        typer.Option(min=0, callback=finite, help="Policy: largest drop of the metric."),
    ] = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option(callback=finite, help="Policy: least SQNR of the worst output, dB."),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=0, help="Policy: how many nodes stay in float.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the policy (.toml) here.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the Pareto front (.svg or .png).")
    ] = None,
    store: StoreOption = "",
    _offline: OfflineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure what quantizing each node costs and saves; write a policy, draw the front."""
    from trtbuild.cli.output import prepare, print_json, speaker, writing
    from trtbuild.cli.request import Arguments
    from trtbuild.errors import GateError
    from trtbuild.pipeline.examine import Wanted, examine
    from trtbuild.pipeline.partial import Part
    from trtbuild.report.sensitivities import sensitivity_sections
    from trtbuild.report.terminal import print_section
    from trtbuild.store import Store

    arguments = Arguments(
        precision=precision,
        backend=backend,
        calibration=calibration,
        evaluation=evaluation,
        method=method,
        shape=tuple(shape or ()),
        keep_float=tuple(keep_float or ()),
    )
    recipe = _quantized(source, arguments)
    budget = _budget(recipe, out, max_drop=max_drop, others=(min_sqnr, keep))
    prepare(out, "--out")
    _prepare_plot(plot)
    wanted = Wanted(
        max_drop=budget, min_sqnr=min_sqnr, keep=keep, runs=runs, front=plot is not None
    )
    say = speaker(quiet=quiet)
    part = Part(recipe=recipe, store=Store.open(store).settled(say), say=say)
    report = examine(part, wanted)
    met = report.policy is None or report.policy.budget_met
    if out is not None and met:
        with writing(out, "--out"):
            out.write_text(_policy_text(recipe, report), encoding="utf-8")
    if plot is not None:
        from trtbuild.report.pareto import draw_front

        with writing(plot, "--plot"):
            draw_front(report, plot)
    if as_json:
        print_json(report)
    else:
        for section in sensitivity_sections(report):
            print_section(section, sys.stdout)
            typer.echo()
    if report.policy is not None and not met:
        raise GateError(_unmet(report.policy, out))


def _quantized(source: str, arguments: Arguments) -> Recipe:
    """Return the recipe; one that quantizes no activations is looked at as INT8."""
    import msgspec

    from trtbuild.cli.request import recipe_of
    from trtbuild.errors import UsageError
    from trtbuild.quantization.policy import QUANTIZED

    asked = arguments.precision
    if asked is not None and asked not in QUANTIZED:
        raise UsageError(
            f"--precision {asked}: sensitivity measures the quantization to "
            f"{' or '.join(QUANTIZED)}, node by node: give one of them"
        )
    recipe = recipe_of(source, arguments)
    if recipe.quantization.precision in QUANTIZED:
        return recipe
    return recipe_of(source, msgspec.structs.replace(arguments, precision="int8"))


def _budget(
    recipe: Recipe,
    out: Path | None,
    *,
    max_drop: float | None,
    others: tuple[float | None, ...],
) -> float | None:
    """Return the budget that is given, or for ``out`` without any limit the recipe's."""
    from trtbuild.errors import UsageError

    given = [value is not None for value in (max_drop, *others)]
    if sum(given) > 1:
        raise UsageError("give one of --max-drop, --min-sqnr and --keep: each decides alone")
    if any(given) or out is None:
        return max_drop
    if recipe.gates.max_drop is None:
        raise UsageError(
            f"--out {out}: a policy needs a limit: give --max-drop, --min-sqnr or --keep"
        )
    return recipe.gates.max_drop


def _prepare_plot(plot: Path | None) -> None:
    from trtbuild.cli.output import prepare
    from trtbuild.errors import MissingBackendError, UsageError

    if plot is None:
        return
    if plot.suffix not in {".svg", ".png"}:
        raise UsageError(f"--plot {plot}: expected a path that ends in .svg or .png")
    prepare(plot, "--plot")
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise MissingBackendError(
            "--plot needs matplotlib, which is not installed here: pip install 'trtbuild[plot]'"
        )


def _unmet(policy: PolicyReport, out: Path | None) -> str:
    drops = [trial.drop.value for trial in policy.trials if trial.drop is not None]
    least = f" The least drop of all tried is {min(drops):+.4f}." if drops else ""
    unwritten = "" if out is None else f" {out} is not written."
    return (
        f"{policy.reason}.{least}{unwritten} Give a limit that can be met, or more varied "
        f"calibration data"
    )


def _policy_text(recipe: Recipe, report: SensitivityReport) -> str:
    from trtbuild.quantization.policy import word_of
    from trtbuild.report.policy_text import policy_text

    policies = () if report.policy is None else (report.policy,)
    return policy_text(recipe.name, word_of(recipe.quantization.precision), policies)
