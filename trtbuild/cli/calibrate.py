"""``trtbuild calibrate``: the ranges of a model's tensors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtbuild.cli.engine import CalibrationOption, ShapeOption, SourceArgument
from trtbuild.cli.options import JsonOption, QuietOption, StoreOption

if TYPE_CHECKING:
    from trtbuild.pipeline.partial import TensorRow


def calibrate(  # noqa: PLR0913  one parameter per option is how Typer works
    source: SourceArgument,
    *,
    calibration: CalibrationOption = None,
    shape: ShapeOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the statistics (.npz) here.")
    ] = None,
    store: StoreOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure the ranges of a model's tensors in one pass, with every method's threshold."""
    from trtbuild.cli.output import prepare, print_json, speaker, writing
    from trtbuild.cli.request import Arguments, recipe_of
    from trtbuild.pipeline.partial import Part
    from trtbuild.pipeline.partial import calibrate as run
    from trtbuild.quantization.ranges import save_ranges
    from trtbuild.report.sections import Column, Section
    from trtbuild.report.terminal import print_section
    from trtbuild.store import Store

    recipe = recipe_of(source, Arguments(calibration=calibration, shape=tuple(shape or ())))
    prepare(out, "--out")
    found = run(Part(recipe=recipe, store=Store.open(store), say=speaker(quiet=quiet)))
    if out is not None:
        with writing(out, "--out"):
            save_ranges(found.ranges, out)
    if as_json:
        print_json({"sha256": found.sha256, "tensors": found.rows})
        return
    methods = tuple(found.rows[0].thresholds) if found.rows else ()
    numbers = (
        Column(name=name.replace("percentile-", "p"), numeric=True)
        for name in ("min", "max", *methods)
    )
    section = Section(
        title=f"Ranges {found.sha256[:12]}: extremes, and thresholds of magnitude by method",
        columns=(Column(name="tensor"), *numbers),
        rows=tuple(
            (row.tensor, *(f"{value:.4g}" for value in _values(row))) for row in found.rows
        ),
    )
    print_section(section, sys.stdout)


def _values(row: TensorRow) -> tuple[float, ...]:
    return (row.minimum, row.maximum, *row.thresholds.values())
