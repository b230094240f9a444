"""``trtbuild cache``: what the store holds, and why two keys differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtbuild.cli import cache_care, cache_tiers
from trtbuild.cli.options import JsonOption, OfflineOption, StoreOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trtbuild.engine import Manifest
    from trtbuild.report.document import EngineSignature
    from trtbuild.store import Record, Store

app = typer.Typer(
    help="See what the store holds and why two keys differ; keep it small and sound.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

EngineArgument = Annotated[
    str,
    typer.Argument(
        metavar="ENGINE",
        help="Digest or key (or 6 or more of its first digits), or path of an engine file.",
    ),
]

_SHOWN_DIGITS = 12

for _command in (
    cache_care.pin,
    cache_care.unpin,
    cache_care.gc,
    cache_care.verify,
    cache_care.stats,
    cache_tiers.push,
    cache_tiers.pull,
    cache_tiers.export,
):
    app.command()(_command)
app.command("import")(cache_tiers.import_)


@app.command("ls")
def list_engines(
    store: StoreOption = "",
    *,
    source: Annotated[
        str, typer.Option("--from", metavar="URI", help="List those of a tier instead.")
    ] = "",
    json: JsonOption = False,
    _offline: OfflineOption = False,
) -> None:
    """List the engines in the store, newest first."""
    from trtbuild.store import Store
    from trtbuild.store.resolve import known_engines

    opened = None if source else Store.open_existing(store)
    if opened is None:
        place, records = cache_tiers.remote_engines(source)
    else:
        place = str(opened.root)
        records = sorted(known_engines(opened), key=lambda each: each.created, reverse=True)
    rows = [(record, _manifest(record)) for record in records]
    if json:
        _print_json({"schema": 1, "engines": [_entry(*row) for row in rows]})
    elif rows:
        head = ("KEY", "ENGINE", "MODEL", "TARGET", "PRECISION", "SIZE", "CREATED")
        _print_table([head, *(_row(*row) for row in rows)])
    else:
        remedy = (
            "is that the place that they were pushed to?"
            if source
            else "'trtbuild engine SOURCE' builds one, 'trtbuild cache ls --from URI' lists a "
            "tier's"
        )
        typer.echo(f"no engines in {place}; {remedy}")
    if opened is not None:
        _warn(opened)


@app.command()
def show(
    engine: EngineArgument,
    store: StoreOption = "",
    *,
    json: JsonOption = False,
    _offline: OfflineOption = False,
) -> None:
    """Show one record: its blobs, what its key was made of, and its manifest.

    The key of any other record (ranges, network ...) is taken as well.
    """
    from trtbuild.store import Store, find_record

    opened = Store.open_existing(store)
    record = find_record(opened, engine)
    if json:
        _print_json(_document(opened, record))
    else:
        _print_record(opened, record)
    _warn(opened)


@app.command()
def why(
    first: Annotated[str, typer.Argument(metavar="A", help="An engine, or any key.")],
    second: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.")],
    store: StoreOption = "",
    *,
    json: JsonOption = False,
    _offline: OfflineOption = False,
) -> None:
    """Say in which fields two keys differ, with both values."""
    from trtbuild.errors import UsageError
    from trtbuild.store import Store, find_record
    from trtbuild.store.difference import differences

    opened = Store.open_existing(store)
    records = find_record(opened, first), find_record(opened, second)
    if records[0].kind != records[1].kind:
        message = (
            f"{first!r} is the key of kind {records[0].kind!r}, {second!r} of "
            f"{records[1].kind!r}: give two of one kind"
        )
        raise UsageError(message)
    found = differences(*records)
    if json:
        keys = [record.key for record in records]
        fields = [
            {"field": each.field, "first": each.first, "second": each.second} for each in found
        ]
        _print_json({"schema": 1, "kind": records[0].kind, "keys": keys, "differences": fields})
    elif records[0].key == records[1].key:
        typer.echo(f"same key: {records[0].kind} {records[0].key}")
    else:
        head = ("FIELD", *(record.key[:_SHOWN_DIGITS] for record in records))
        _print_table([head, *((each.field, each.first, each.second) for each in found)])
    _warn(opened)


def _manifest(record: Record) -> Manifest | None:
    """Return the manifest of an engine record, None where another version wrote it."""
    from trtbuild.engine import Manifest
    from trtbuild.errors import StoreError

    try:
        return record.read(Manifest)
    except StoreError:
        return None


def _row(record: Record, manifest: Manifest | None) -> tuple[str, ...]:
    from trtbuild.recipe import recipe_name
    from trtbuild.store.sizes import shown_size

    key = record.key[:_SHOWN_DIGITS]
    if manifest is None:
        return (key, "?", "?", "?", "?", "?", record.created)
    return (
        key,
        manifest.sha256[:_SHOWN_DIGITS],
        recipe_name(manifest.recipe) or "?",
        str(manifest.preimage.target),
        manifest.precision_requested,
        shown_size(manifest.bytes),
        record.created,
    )


def _entry(record: Record, manifest: Manifest | None) -> dict[str, object]:
    from trtbuild.recipe import recipe_name

    entry: dict[str, object] = {"key": record.key, "created": record.created}
    if manifest is None:
        return entry
    target = manifest.preimage.target
    return entry | {
        "sha256": manifest.sha256,
        "recipe": recipe_name(manifest.recipe),
        "bytes": manifest.bytes,
        "backend": target.backend,
        "backend_version": manifest.preimage.fingerprint.version,
        "arch": target.arch,
        "precision_requested": manifest.precision_requested,
        "precision_achieved": manifest.layers.precision_achieved,
        "int8_mac_share": manifest.int8_mac_share,
        "fused_layers": manifest.fused_layers,
    }


def _document(store: Store, record: Record) -> dict[str, object]:
    """Return the whole record; ``value`` is the manifest where it is an engine's."""
    blobs = [
        {
            "name": blob.name,
            "sha256": blob.sha256,
            "bytes": blob.bytes,
            "path": str(store.path(blob.sha256)),
        }
        for blob in record.blobs
    ]
    signed = {"signatures": _signatures(store, record)} if record.kind == "engine" else {}
    return signed | {
        "schema": 1,
        "kind": record.kind,
        "key": record.key,
        "created": record.created,
        "blobs": blobs,
        "preimage": record.preimage,
        "value": record.value,
    }


def _signatures(store: Store, record: Record) -> tuple[EngineSignature, ...]:
    from trtbuild.pipeline.job import signatures_of

    return signatures_of(store, record.blob("engine").sha256)


def _print_json(document: object) -> None:
    from msgspec.json import encode, format  # noqa: A004  used in this function only

    typer.echo(format(encode(document), indent=2).decode())


def _print_record(store: Store, record: Record) -> None:
    _print_table([("kind", record.kind), ("key", record.key), ("created", record.created)])
    blobs = [
        (f"blob {blob.name}", f"{blob.bytes} bytes", str(store.path(blob.sha256)))
        for blob in record.blobs
    ]
    _print_table(blobs)
    if record.kind == "engine":
        from trtbuild.report.sections import signed_note

        typer.echo(signed_note(_signatures(store, record)))
    typer.echo("\nkey made of:")
    _print_json(record.preimage)
    if record.kind == "engine":
        typer.echo("\nmanifest (--json shows its layers and the recipe, too):")
        _print_json(_summary(record))
    else:
        typer.echo("\nvalue:")
        _print_json(record.value)


def _summary(record: Record) -> dict[str, object]:
    """Return a manifest as JSON without what fills screens."""
    from msgspec.json import decode

    value: dict[str, Any] = decode(record.value)
    layers = value.pop("layers", {}).get("layers", ())
    kept = {name: each for name, each in value.items() if name not in ("recipe", "preimage")}
    kept["layers"] = len(layers)
    manifest = _manifest(record)
    if manifest is not None:
        kept["precision_achieved"] = manifest.layers.precision_achieved
    return kept


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows of equal length in aligned columns, plain, so that pipes can cut them."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def _warn(store: Store) -> None:
    for incident in store.incidents:
        typer.echo(f"warning: {incident.path}: {incident.reason}", err=True)
