"""``trtbuild verify``: an engine against the original framework, measured anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtbuild.cli.engine import MarkdownOption
from trtbuild.cli.options import JsonOption, OfflineOption, QuietOption, StoreOption


def verify(  # noqa: PLR0913  one parameter per option is how Typer works
    engine: Annotated[
        str,
        typer.Argument(metavar="ENGINE", help="A digest, its prefix, a key or a path."),
    ],
    *,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="Model, data, gates (default: its first recipe)."),
    ] = None,
    save_outputs: Annotated[
        Path | None,
        typer.Option(
            "--save-outputs", metavar="FILE", help="Polygraphy run results, one batch."
        ),
    ] = None,
    markdown: MarkdownOption = None,
    store: StoreOption = "",
    _offline: OfflineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare an engine of the store with its framework, time it, and judge its gates."""
    from trtbuild.cli.output import finish, prepare, speaker
    from trtbuild.pipeline.job import verify_engine
    from trtbuild.recipe import load_recipe

    prepare(markdown, "--markdown")
    given = load_recipe(recipe) if recipe else None
    prepare(save_outputs, "--save-outputs")
    say = speaker(quiet=quiet)
    report = verify_engine(engine, store, given, say=say, outputs=save_outputs)
    finish(report, as_json=as_json, markdown=markdown)
