"""``trtbuild doctor``: what works on this machine, what does not, and what changes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from trtbuild.cli.options import JsonOption, OfflineOption, StoreOption

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trtbuild.cli.installation import Check

_NAME_WIDTH = 16


def doctor(
    store: StoreOption = "", json: JsonOption = False, *, _offline: OfflineOption = False
) -> None:
    """Say what is installed here, what is missing, and the line that installs it."""
    from trtbuild.backends import distributions
    from trtbuild.canonical import encode
    from trtbuild.cli.installation import examine
    from trtbuild.cli.trust_checks import trust_checks

    version = distributions.version("trtbuild")
    checks = (*examine(store), *trust_checks())
    if json:
        document = {"schema": 1, "trtbuild": version, "checks": checks}
        typer.echo(encode(document))
        return
    typer.echo(f"trtbuild {version or '(not installed)'}")
    for line in lines(checks):
        typer.echo(line)


def lines(checks: Iterable[Check]) -> Iterator[str]:
    """Yield the lines of the report: a heading per group, one or two lines per check."""
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            yield ""
            yield group
        about = "  ".join(filter(None, (check.version, check.detail)))
        yield f"  {check.state:<8} {check.name:<{_NAME_WIDTH}} {about}".rstrip()
        if check.remedy:
            yield f"  {'':<8} {'':<{_NAME_WIDTH}} -> {check.remedy}"
