"""The program without its commands: its name, its help, ``--version``."""

from __future__ import annotations

from typing import Annotated

import typer


def empty_program() -> typer.Typer:
    """Return a new application that has no command yet."""
    app = typer.Typer(
        name="trtbuild",
        help="Turn a model in its own framework into a tested, cached inference engine.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    return app


def _print_version(requested: bool) -> None:  # noqa: FBT001  Typer calls it with the flag
    if requested:
        from importlib.metadata import version

        typer.echo(f"trtbuild {version('trtbuild')}")
        raise typer.Exit


def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """Turn a model in its own framework into a tested, cached inference engine."""
