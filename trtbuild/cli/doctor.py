"""``trtbuild doctor``: what works on this machine, what does not, and what changes it."""

from __future__ import annotations

import typer

from trtbuild.cli.options import JsonOption, StoreOption

_NAME_WIDTH = 16


def doctor(store: StoreOption = "", json: JsonOption = False) -> None:
    """Say what is installed here, what is missing, and the line that installs it."""
    from trtbuild.canonical import encode
    from trtbuild.cli.installation import examine, installed_version

    version = installed_version("trtbuild")
    checks = examine(store)
    if json:
        document = {"schema": 1, "trtbuild": version, "checks": checks}
        typer.echo(encode(document))
        return
    typer.echo(f"trtbuild {version or '(not installed)'}")
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            typer.echo(f"\n{group}")
        about = "  ".join(filter(None, (check.version, check.detail)))
        typer.echo(f"  {check.state:<8} {check.name:<{_NAME_WIDTH}} {about}".rstrip())
        if check.remedy:
            typer.echo(f"  {'':<8} {'':<{_NAME_WIDTH}} -> {check.remedy}")
