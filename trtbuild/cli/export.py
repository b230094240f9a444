"""``trtbuild export``: ONNX, and its parity with the framework."""

from __future__ import annotations

from pathlib import Path

import typer

from trtbuild.cli.engine import CalibrationOption, ShapeOption, SourceArgument
from trtbuild.cli.options import JsonOption, OfflineOption, OutOption, QuietOption, StoreOption


def export(  # noqa: PLR0913  one parameter per option is how Typer works
    source: SourceArgument,
    *,
    out: OutOption = None,
    calibration: CalibrationOption = None,
    shape: ShapeOption = None,
    store: StoreOption = "",
    _offline: OfflineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Export a model to ONNX and compare it with its framework on real inputs."""
    from trtbuild.cli.output import prepare, print_json, speaker, writing
    from trtbuild.cli.request import Arguments, recipe_of
    from trtbuild.pipeline.partial import Part, describe
    from trtbuild.pipeline.partial import export as run
    from trtbuild.store import Store

    recipe = recipe_of(source, Arguments(calibration=calibration, shape=tuple(shape or ())))
    say = speaker(quiet=quiet)
    part = Part(recipe=recipe, store=Store.open(store).settled(say), say=say)
    path = out or Path(f"{recipe.name}.onnx")
    prepare(path, "--out")
    with writing(path, "--out"):
        found = run(part, path)
    if as_json:
        print_json(
            {
                "path": str(found.graph.path),
                "sha256": found.graph.sha256,
                "inputs": found.graph.inputs,
                "outputs": found.graph.outputs,
                "parity": found.parity,
                "findings": found.findings,
            }
        )
        return
    typer.echo(f"{found.graph.path}  sha256 {found.graph.sha256[:12]}")
    for word, specs in (("input", found.graph.inputs), ("output", found.graph.outputs)):
        for spec in specs:
            typer.echo(f"  {word} {describe(spec)}")
    for row in found.parity.outputs if found.parity else ():
        share = "-" if row.max_relative is None else f"{row.max_relative:.2e} of its scale"
        typer.echo(
            f"  parity {row.output}, batch {row.batch_size}: {row.verdict}, largest "
            f"difference {row.max_abs:.2e} ({share})"
        )
    for finding in found.findings:
        typer.echo(f"  note: {finding}")
