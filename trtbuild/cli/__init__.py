"""The command line: parse, call one function, print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from trtbuild.errors import TrtbuildError

if TYPE_CHECKING:
    import typer

_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def main() -> None:
    """Run the command line; an error with a remedy becomes one message and its exit code."""
    try:
        _program(sys.argv[1:])()
    except TrtbuildError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  the command line's own output
        sys.exit(error.exit_code)
    except SystemExit as leaving:  # Typer has turned KeyboardInterrupt into it
        if leaving.code == _INTERRUPTED:
            print("interrupted; what was stored stays valid", file=sys.stderr)  # noqa: T201  as above
        raise


def _program(arguments: list[str]) -> typer.Typer:
    """Return the command line; for ``trtbuild engine``, with this command alone.

    A full cache hit does so little that importing the other commands, and Typer's look at
    every option of theirs, would be a third of its time.
    """
    if arguments[:1] == ["engine"]:
        from trtbuild.cli.engine import engine
        from trtbuild.cli.program import empty_program

        program = empty_program()
        program.command()(engine)
        return program
    from trtbuild.cli.application import app

    return app
