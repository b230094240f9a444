"""``trtbuild cache push, pull, export, import``: engines from one store to another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtbuild.cli.options import JsonOption, OfflineOption, QuietOption, StoreOption
from trtbuild.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.store import Record, Store
    from trtbuild.store.tiers.tier import Tier

TIER_HELP = (
    "Folder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or "
    "oci://host/repository."
)

EnginesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ENGINE...", help="Digests, keys, or 6 or more of their first digits."
    ),
]
AllOption = Annotated[
    bool,
    typer.Option("--all", help="Everything that other machines can use, not engines only."),
]


def push(  # noqa: PLR0913  one parameter per option is how Typer works
    to: Annotated[str, typer.Option("--to", metavar="URI", help=TIER_HELP)],
    engines: EnginesArgument = None,
    store: StoreOption = "",
    *,
    everything: AllOption = False,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Send engines that nobody signed, too.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    _offline: OfflineOption = False,
) -> None:
    """Send engines, with their reports and statements, to a tier; what is there is skipped.

    Engines that nobody signed are refused, or left out with --all: nobody else loads them. One
    of which the tier has another build is refused (6). Run it again after an interruption: it
    goes on with what is missing.
    """
    from trtbuild.cli.output import print_json, speaker
    from trtbuild.store import Store
    from trtbuild.store.tiers.address import read_address
    from trtbuild.store.tiers.progress import Progress
    from trtbuild.store.tiers.rivals import push_builds
    from trtbuild.store.tiers.tier import TierError
    from trtbuild.store.tiers.transfer import weight
    from trtbuild.store.unsent import forget

    opened = Store.open_existing(store).here
    tier = _tier(to)
    records = _chosen(opened, engines or [], everything=everything)
    if not unsigned:
        records = _signed(opened, records, say=speaker(quiet=quiet) if everything else None)
    identity = read_address(to).identity
    progress = Progress(speaker(quiet=quiet), f"push to {tier.uri}", sum(map(weight, records)))
    number, sent, rivals = push_builds(tier, opened, records, progress.add)
    for record in records:
        forget(opened, identity, record.kind, record.key)
    if json:
        print_json(
            {
                "schema": 1,
                "to": tier.uri,
                "records": number,
                "objects_sent": sent.objects,
                "objects_present": sent.present,
                "bytes_sent": sent.bytes,
            }
        )
    else:
        typer.echo(
            f"pushed {counted(number, 'record')} to {tier.uri}: "
            f"{counted(sent.objects, 'object')} "
            f"({_size(sent.bytes)}) sent, {sent.present} already there"
        )
    _warn(opened)
    if rivals:
        raise TierError("; ".join(map(str, rivals)))


def pull(
    engine: Annotated[
        str, typer.Argument(metavar="ENGINE", help="Digest or key, or 6 or more digits of it.")
    ],
    source: Annotated[str, typer.Option("--from", metavar="URI", help=TIER_HELP)],
    store: StoreOption = "",
    *,
    json: JsonOption = False,
    quiet: QuietOption = False,
    _offline: OfflineOption = False,
) -> None:
    """Bring an engine, with its statements, from a tier; every byte is verified."""
    from trtbuild.cli.output import print_json, speaker
    from trtbuild.store import Store
    from trtbuild.store.tiers.remote import pull_engine

    opened = Store.open(store).here
    tier = _tier(source)
    record = pull_engine(tier, opened, engine, speaker(quiet=quiet))
    plan = record.blobs[0]
    path = opened.path(plan.sha256)
    if json:
        print_json(
            {
                "schema": 1,
                "from": tier.uri,
                "key": record.key,
                "sha256": plan.sha256,
                "bytes": plan.bytes,
                "path": str(path),
            }
        )
    else:
        typer.echo(f"pulled engine {plan.sha256} ({_size(plan.bytes)}) to {path}")
    _warn(opened)


def export(  # noqa: PLR0913  one parameter per option is how Typer works
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.tar", help="Write it here.")
    ],
    engines: EnginesArgument = None,
    store: StoreOption = "",
    *,
    everything: AllOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    _offline: OfflineOption = False,
) -> None:
    """Write engines, with their reports and statements, to one file (an OCI image layout)."""
    from trtbuild.cli.output import prepare, print_json, speaker, writing
    from trtbuild.store import Store
    from trtbuild.store.tiers.bundle import write_bundle

    opened = Store.open_existing(store).here
    records = _chosen(opened, engines or [], everything=everything)
    prepare(out, "--out")
    with writing(out, "--out"):
        size_bytes = write_bundle(opened, records, out, speaker(quiet=quiet))
    if json:
        print_json(
            {"schema": 1, "path": str(out), "records": len(records), "bytes": size_bytes}
        )
    else:
        typer.echo(f"exported {counted(len(records), 'record')} to {out} ({_size(size_bytes)})")
    _warn(opened)


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", help="What export wrote.")],
    store: StoreOption = "",
    *,
    json: JsonOption = False,
    quiet: QuietOption = False,
    _offline: OfflineOption = False,
) -> None:
    """Bring everything in an exported file to the store; every byte is verified."""
    from trtbuild.cli.output import print_json, speaker
    from trtbuild.store import Store
    from trtbuild.store.tiers.bundle import read_bundle

    opened = Store.open(store).here
    records = read_bundle(opened, file, speaker(quiet=quiet))
    engines = [record for record in records if record.kind == "engine"]
    if json:
        keys = [{"kind": record.kind, "key": record.key} for record in records]
        print_json({"schema": 1, "path": str(file), "records": keys})
    else:
        typer.echo(
            f"imported {counted(len(records), 'record')} from {file}, "
            f"{counted(len(engines), 'engine')}:"
        )
        for record in engines:
            typer.echo(f"  {record.blobs[0].sha256}  key {record.key[:12]}")
    _warn(opened)


def remote_engines(uri: str) -> tuple[str, list[Record]]:
    """Return the name of a tier and the records of the engines in it, newest first."""
    from trtbuild.store.tiers.remote import engines_of

    tier = _tier(uri)
    found = engines_of(tier)
    return tier.uri, sorted(found, key=lambda record: record.created, reverse=True)


def _tier(uri: str) -> Tier:
    from trtbuild.errors import UsageError
    from trtbuild.store.location import is_offline
    from trtbuild.store.tiers.address import read_address
    from trtbuild.store.tiers.connect import connect

    address = read_address(uri)
    if is_offline() and address.is_network:
        raise UsageError(f"{address.shown}: needs the network, which --offline forbids")
    return connect(address)


def _chosen(store: Store, engines: list[str], *, everything: bool) -> list[Record]:
    from trtbuild.errors import UsageError
    from trtbuild.store.tiers.remote import all_records, records_of

    if bool(engines) == everything:
        raise UsageError("name engines ('trtbuild cache ls' lists them), or give --all")
    return all_records(store) if everything else records_of(store, engines)


def _signed(
    store: Store, records: list[Record], say: Callable[[str], None] | None
) -> list[Record]:
    """Return ``records`` without unsigned engines, which ``say`` is told; else refuse them."""
    from trtbuild.errors import UsageError
    from trtbuild.store.statements import statements

    subjects = {record.blob("engine").sha256 for record in records if record.kind == "engine"}
    bare = {sha256 for sha256 in subjects if not statements(store, sha256)}
    if not bare:
        return records
    names = ", ".join(sorted(sha256[:12] for sha256 in bare))
    if say is None or bare == subjects:
        raise UsageError(
            f"nobody signed {len(bare)} of these engines ({names}), so that nobody else loads "
            f"them: expected signed ones. Sign them with 'trtbuild engine RECIPE' and a key "
            f"(trtbuild keys generate NAME --use), or push them with --unsigned"
        )
    say(
        f"left out: {counted(len(bare), 'engine')} that nobody signed ({names}); --unsigned "
        f"sends them"
    )
    return [
        record
        for record in records
        if not (record.kind == "engine" and record.blob("engine").sha256 in bare)
        and not (record.kind == "plan" and record.key in bare)
    ]


def _size(count: int) -> str:
    from trtbuild.store.sizes import shown_size

    return shown_size(count)


def _warn(store: Store) -> None:
    for incident in store.incidents:
        typer.echo(f"warning: {incident.path}: {incident.reason}", err=True)
