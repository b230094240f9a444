"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="TRTBUILD_STORE",
        metavar="FOLDER",
        help="Where engines are kept (default: the user's cache folder).",
    ),
]
"""A folder; the empty string means the user's cache folder."""

JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document; progress and logs go to stderr."),
]

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]

OutOption = Annotated[Path | None, typer.Option("--out", "-o", help="Write the result here.")]
