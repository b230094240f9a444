"""``trtbuild cache pin``, ``unpin``, ``gc``, ``verify`` and ``stats``: the care of a store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtbuild.cli.options import JsonOption, OfflineOption, QuietOption, StoreOption, finite
from trtbuild.wording import counted

if TYPE_CHECKING:
    from trtbuild.store.collect import Collection
    from trtbuild.store.pins import Pin

PinnedArgument = Annotated[
    str,
    typer.Argument(
        metavar="[ENGINE]", help="The engine to keep; without one, the pins are listed."
    ),
]
HighOption = Annotated[
    str, typer.Option("--high", metavar="SIZE", help="Collect where the store is larger.")
]
LowOption = Annotated[
    str, typer.Option("--low", metavar="SIZE", help="Shrink it to this (default: 70 % of it).")
]
KeepOption = Annotated[
    float,
    typer.Option(
        "--keep-days",
        min=0,
        max=36500,
        callback=finite,
        help="Keep what was used within so many days.",
    ),
]
GraceOption = Annotated[
    str, typer.Option("--grace", metavar="TIME", help="Keep what is younger: 90s, 30m, 1h.")
]

_SHOWN_DIGITS = 12
_TIME = re.compile(r"([0-9]+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DAY_S = 86400.0


def pin(
    engine: PinnedArgument = "",
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="NAME or NAMESPACE/NAME.")
    ] = "",
    store: StoreOption = "",
    *,
    json: JsonOption = False,
    _offline: OfflineOption = False,
) -> None:
    """Keep an engine whatever 'cache gc' removes; without ENGINE list the pins.

    A pin keeps the engine, what was measured of it, and the network it was built from. A name
    that is taken moves to this engine.
    """
    from trtbuild.cli.output import print_json
    from trtbuild.errors import UsageError
    from trtbuild.store import Store, find_engine
    from trtbuild.store import pins as pinning

    if name and not engine:
        message = f"--name {name}: of which engine? Give ENGINE before it"
        raise UsageError(message)
    opened = Store.open_existing(store)
    added = pinning.pin(opened, find_engine(opened, engine), name) if engine else ""
    found, damaged = pinning.read_pins(opened)
    for reason in damaged.values():
        typer.echo(f"warning: {reason}", err=True)
    if json:
        print_json({"schema": 1, "pins": [_pin_entry(*each) for each in found.items()]})
    elif added:
        typer.echo(f"pinned {found[added].sha256[:_SHOWN_DIGITS]} as {added}")
    elif found:
        for full, each in found.items():
            typer.echo(f"{full}  {each.sha256[:_SHOWN_DIGITS]}  {each.created}")
    else:
        typer.echo(f"no pins in {opened.root}; 'trtbuild cache pin ENGINE' makes one")


def unpin(
    name: Annotated[str, typer.Argument(metavar="NAME|ENGINE")], store: StoreOption = ""
) -> None:
    """Remove a pin by its name, or all pins of an engine; the engine stays until collected."""
    from trtbuild.store import Store
    from trtbuild.store import pins as pinning

    for full in pinning.unpin(Store.open_existing(store), name):
        typer.echo(f"unpinned {full}")


def gc(  # noqa: PLR0913  one parameter per option is how Typer works
    high: HighOption = "50GB",
    low: LowOption = "",
    keep_days: KeepOption = 1.0,
    grace: GraceOption = "1h",
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    store: StoreOption = "",
    json: JsonOption = False,
) -> None:
    """Shrink the store: what was not used for longest goes, pins and what is in use stay."""
    from msgspec.structs import asdict, replace

    from trtbuild.cli.output import print_json
    from trtbuild.store import Store
    from trtbuild.store.automatic import limits_of
    from trtbuild.store.collect import collect

    limits = replace(
        limits_of(high, low), keep_s=keep_days * _DAY_S, grace_s=_parse_time(grace)
    )
    found = collect(Store.open_existing(store), limits, dry_run=dry_run)
    if json:
        print_json({"schema": 1, **asdict(found)})
        return
    for line in _collection_lines(found):
        typer.echo(line)


def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Move what is wrong to quarantine.")
    ] = False,
    store: StoreOption = "",
    *,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Read and hash everything in the store; leaves with 6 if something is wrong."""
    from msgspec.structs import asdict

    from trtbuild.cli.output import print_json, speaker
    from trtbuild.errors import StoreError
    from trtbuild.store import Store
    from trtbuild.store.audit import audit
    from trtbuild.store.sizes import shown_size

    opened = Store.open_existing(store)
    found = audit(opened, repair=repair, say=speaker(quiet=quiet))
    if json:
        print_json({"schema": 1, **asdict(found), "sound": found.sound})
    else:
        for fault in found.faults:
            done = " (now in quarantine)" if fault.repaired else ""
            typer.echo(f"{fault.kind}: {fault.path}: {fault.reason}{done}")
        typer.echo(
            f"whole: {counted(found.records, 'record')} and {counted(found.blobs, 'blob')}, "
            f"{shown_size(found.size_bytes)}; {counted(found.unnamed_blobs, 'blob')} without a "
            f"record, {counted(found.newer, 'record')} of a later version"
        )
    if not found.sound:
        remedy = (
            "see the reasons above" if repair else "'trtbuild cache verify --repair' sets aside"
        )
        message = (
            f"store {opened.root}: not sound: {counted(len(found.faults), 'file')}: {remedy}"
        )
        raise StoreError(message + ("" if repair else " what is; it is made again when needed"))


def stats(
    openmetrics: Annotated[
        Path | None,
        typer.Option("--openmetrics", metavar="FILE", help="Write them for Prometheus too."),
    ] = None,
    store: StoreOption = "",
    *,
    chunks: Annotated[
        bool,
        typer.Option(
            "--chunks", help="Read all blobs: what would be saved if they shared chunks?"
        ),
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say how often the store had what was asked for, and what that saved."""
    from msgspec.structs import asdict

    from trtbuild.cli.output import print_json, speaker, writing
    from trtbuild.store import Store, counters
    from trtbuild.store.metrics import lines, summarize, write

    opened = Store.open_existing(store)
    found = summarize(counters.totals(opened))
    if openmetrics is not None:
        with writing(openmetrics, "--openmetrics"):
            write(openmetrics, found)
    document, shown = asdict(found), list(lines(found))
    if chunks:
        from trtbuild.store import chunks as sharing

        potential = sharing.potential(opened, speaker(quiet=quiet))
        document["chunks"] = potential
        shown += sharing.lines(potential)
    if json:
        print_json(document)
        return
    for line in shown:
        typer.echo(line)


def _pin_entry(name: str, each: Pin) -> dict[str, object]:
    return {
        "name": name,
        "sha256": each.sha256,
        "engine_key": each.engine_key,
        "created": each.created,
    }


def _parse_time(text: str) -> float:
    from trtbuild.errors import UsageError

    found = _TIME.fullmatch(text)
    if not found:
        message = f"--grace {text!r}: expected a time such as 90s, 30m, 1h or 7d"
        raise UsageError(message)
    return float(int(found[1]) * _SECONDS[found[2]])


def _collection_lines(found: Collection) -> list[str]:
    from trtbuild.store.sizes import shown_size

    verb = "would remove" if found.dry_run else "removed"
    lines = [
        f"{shown_size(found.before_bytes)} before, {shown_size(found.after_bytes)} after",
        f"{verb} {counted(found.records, 'record')} and {counted(found.blobs, 'blob')}",
        f"kept by pins {shown_size(found.pinned_bytes)}",
        f"kept as used or made of late {shown_size(found.recent_bytes)}",
    ]
    if found.quarantined or found.temporaries or found.beside:
        lines.append(
            f"{verb} {counted(found.quarantined, 'old file')} of the quarantine, "
            f"{found.beside} checkpoints, statements and marks that belong to nothing, and "
            f"{counted(found.temporaries, 'file')} left by dead processes"
        )
    lines += [f"pin {name}: its engine is lost" for name in found.broken_pins]
    if not found.small_enough:
        lines.append("still above --high: unpin engines, or give a smaller --keep-days")
    return lines
