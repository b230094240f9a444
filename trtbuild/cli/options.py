"""Options that several commands share, each declared once."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

import typer

StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="TRTBUILD_STORE",
        metavar="URI[,URI...]",
        help="Where engines are kept: a folder (default: the user's cache folder), then tiers "
        "to share them: a mounted folder, s3://bucket/prefix, gs://bucket/prefix, "
        "az://container/prefix, oci://host/repository; ?write=yes where results go too.",
    ),
]
"""A folder and remote tiers; the empty string means the user's cache folder."""


def finite(value: float | None) -> float | None:
    """Return the value of an option; every option that is a float has this as its callback.

    NaN is neither below a least value nor above a largest one: Typer lets it through.

    Raises:
        BadParameter: it is NaN or infinite.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number that can be compared.")
    return value


def positive(value: float | None) -> float | None:
    """Return the value of an option; raises as :func:`finite`, and for 0 and less."""
    finite(value)
    if value is not None and value <= 0:
        raise typer.BadParameter(f"{value:g} is not more than 0.")
    return value


def _go_offline(requested: bool) -> None:  # noqa: FBT001  Typer calls it with the flag
    if requested:
        from trtbuild.store.location import OFFLINE

        os.environ[OFFLINE] = "1"


OfflineOption = Annotated[
    bool,
    typer.Option(
        "--offline",
        expose_value=False,
        callback=_go_offline,
        is_eager=True,
        help="Open no socket: leave out tiers on the network (also: TRTBUILD_OFFLINE=1).",
    ),
]
"""Processes that the command starts are offline too."""

JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document; progress and logs go to stderr."),
]

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]

OutOption = Annotated[Path | None, typer.Option("--out", "-o", help="Write the result here.")]
