"""The command line: parse, call one function, print."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from trtbuild.cli import cache, keys
from trtbuild.cli.bench import bench
from trtbuild.cli.calibrate import calibrate
from trtbuild.cli.doctor import doctor
from trtbuild.cli.engine import engine
from trtbuild.cli.export import export
from trtbuild.cli.inspect import inspect
from trtbuild.cli.lock import lock
from trtbuild.cli.nightly import nightly
from trtbuild.cli.promote import promote
from trtbuild.cli.sensitivity import sensitivity
from trtbuild.cli.verify import verify
from trtbuild.errors import TrtbuildError

_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

app = typer.Typer(
    name="trtbuild",
    help="Turn a model in its own framework into a tested, cached inference engine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(requested: bool) -> None:  # noqa: FBT001  Typer calls it with the flag
    if requested:
        from importlib.metadata import version

        typer.echo(f"trtbuild {version('trtbuild')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """Turn a model in its own framework into a tested, cached inference engine."""


app.command()(engine)
app.command()(export)
app.command()(calibrate)
app.command()(sensitivity)
app.command()(verify)
app.command()(bench)
app.command()(inspect)
app.command()(nightly)
app.add_typer(cache.app, name="cache")
app.add_typer(keys.app, name="keys")
app.command()(promote)
app.command()(lock)
app.command()(doctor)


def main() -> None:
    """Run the command line; an error with a remedy becomes one message and its exit code."""
    try:
        app()
    except TrtbuildError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  the command line's own output
        sys.exit(error.exit_code)
    except SystemExit as leaving:  # Typer has turned KeyboardInterrupt into it
        if leaving.code == _INTERRUPTED:
            print("interrupted; what was stored stays valid", file=sys.stderr)  # noqa: T201  as above
        raise
