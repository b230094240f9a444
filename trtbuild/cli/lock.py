"""``trtbuild lock``: pin what a deployment serves, and check that it still may be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtbuild.cli.keys import PolicyOption
from trtbuild.cli.options import JsonOption, OfflineOption, StoreOption

if TYPE_CHECKING:
    from trtbuild.runtime.locking import Checked


def lock(  # noqa: PLR0913  one parameter per option is how Typer works
    engines: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ENGINE]...", help="Default: the newest signed releases."),
    ] = None,
    *,
    file: Annotated[
        Path, typer.Option("--file", "-f", metavar="FILE", help="The lockfile.")
    ] = Path("engines.lock"),
    check: Annotated[
        bool,
        typer.Option("--check", help="Change nothing; fail (6) on a bad pin."),
    ] = False,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="MODEL", help="Take a model out of the file."),
    ] = None,
    model: Annotated[
        str,
        typer.Option("--model", help="Pin ENGINE as this (default: its recipe's name)."),
    ] = "",
    policy: PolicyOption = "",
    store: StoreOption = "",
    json: JsonOption = False,
    _offline: OfflineOption = False,
) -> None:
    """Write engines.lock: for each model and target the engine that is served. Commit it.

    Without ENGINE every model that was signed is pinned to its newest release that the policy
    admits, and what is refused is listed. With ENGINE only its entries change; an unsigned
    engine must be named. No model leaves the file without --drop: the command fails (6).
    """
    from trtbuild.cli.output import print_json, write_whole
    from trtbuild.errors import TrustError, UsageError
    from trtbuild.runtime import locking
    from trtbuild.runtime.trust_files import load_policy, policy_name
    from trtbuild.store import Store
    from trtbuild.trust.lockfile import write_lock

    opened = Store.open_existing(store)
    rules = load_policy(policy_name(policy))
    refused: tuple[Checked, ...] = ()
    if model and not engines:
        message = "--model says what ENGINE is pinned as: name the engine, too"
        raise UsageError(message)
    if check:
        if engines or drop:
            message = "--check looks at the whole file: name no engine, and drop nothing"
            raise UsageError(message)
        found = locking.check(opened, file, rules)
    else:
        wanted = locking.Wanted(
            engines=tuple(engines or ()), drop=tuple(drop or ()), model=model
        )
        done = locking.lock(opened, file, wanted, rules)
        write_whole(file, write_lock(done.lock), "--file")
        found, refused = done.entries, done.refused
    if json:
        print_json({"schema": 1, "file": str(file), "engines": found, "refused": refused})
    else:
        for each in found:
            typer.echo(_line(each))
        for each in refused:
            typer.echo(f"REFUSED {each.told()}")
    if any(each.problem for each in found) and check:
        raise typer.Exit(TrustError.exit_code)


def _line(each: Checked) -> str:
    state = f"REFUSED {each.problem}" if each.problem else each.note
    return f"{each.model}  {each.target}  {each.engine[:12]}  {each.seq or 'unsigned'}  {state}"
