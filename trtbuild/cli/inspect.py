"""``trtbuild inspect``: what is inside an engine or a model file; needs no GPU."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from trtbuild.cli.options import JsonOption, OfflineOption, StoreOption
from trtbuild.errors import StoreError

if TYPE_CHECKING:
    from trtbuild.cli.inspection import Inspected, OnnxFile, PlanFile
    from trtbuild.engine import Manifest
    from trtbuild.report.sections import Section


def inspect(
    engine: Annotated[
        str,
        typer.Argument(
            metavar="ENGINE_OR_PLAN",
            help="Digest, key or prefix of an engine in the store, or a plan or ONNX file.",
        ),
    ],
    *,
    layers: Annotated[
        bool,
        typer.Option("--layers", help="List all layers, not only those of note."),
    ] = False,
    times: Annotated[
        bool,
        typer.Option("--times", help="Time each layer on this machine, the slowest first."),
    ] = False,
    store: StoreOption = "",
    _offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show an engine's manifest and layers, a plan's header, or what an ONNX file holds.

    Without --layers it lists the compute layers that are not in the precision asked for, and
    with --times the slowest. Only --times runs the engine, and needs its GPU. A plan that is
    cut short is shown as far as it goes, and the exit code is 6.
    """
    from trtbuild.cli.inspection import PlanFile, examine, timed
    from trtbuild.cli.output import print_json, speaker
    from trtbuild.report.terminal import print_section

    found = examine(engine, store)
    if times:
        found = timed(found, store, speaker(quiet=False))
    if as_json:
        print_json(_document(found))
    else:
        for index, section in enumerate(_sections(found, all_layers=layers)):
            if index:
                typer.echo()
            print_section(section, sys.stdout)
    if isinstance(found, PlanFile) and found.damaged:
        raise typer.Exit(StoreError.exit_code)


def _document(found: Inspected) -> dict[str, object]:
    from msgspec import to_builtins

    from trtbuild.cli.inspection import PlanFile, StoredEngine

    if isinstance(found, StoredEngine):
        where = {"path": found.path, "same_bytes_as": found.also}
        return {"schema": 1, "kind": "engine"} | where | _manifest(found.manifest)
    if isinstance(found, PlanFile):
        plan = {"path": found.path, "bytes": found.bytes, "whole": found.whole}
        plan |= {"offset": found.offset}
        return {"schema": 1, "kind": "plan", **plan, "header": found.header}
    return {"schema": 1, "kind": "onnx", **to_builtins(found)}


def _manifest(manifest: Manifest) -> dict[str, object]:
    """Return what is known of an engine; what a report has too is called the same."""
    from trtbuild.report.layer_findings import layer_findings

    preimage = manifest.preimage
    return {
        "key": manifest.key,
        "sha256": manifest.sha256,
        "bytes": manifest.bytes,
        "backend": preimage.target.backend,
        "backend_version": preimage.fingerprint.version,
        "arch": preimage.target.arch,
        "os": preimage.target.os,
        "network_sha256": preimage.network_sha256,
        "precision_requested": manifest.precision_requested,
        "precision_achieved": manifest.layers.precision_achieved,
        "int8_mac_share": manifest.int8_mac_share,
        "fused_layers": manifest.fused_layers,
        "inputs": manifest.inputs,
        "outputs": manifest.outputs,
        "profiles": preimage.profiles,
        "settings": dict(preimage.settings),
        "layers": manifest.layers.layers,
        "findings": layer_findings(manifest.layers, preimage.target),
        "warnings": manifest.warnings,
        "build_seconds": manifest.build_seconds,
        "peak_rss_bytes": manifest.peak_rss_bytes,
        "created": manifest.created,
        "trtbuild_version": manifest.trtbuild_version,
    }


def _sections(found: Inspected, *, all_layers: bool) -> tuple[Section, ...]:
    from trtbuild.cli.engine_view import engine_sections
    from trtbuild.cli.inspection import PlanFile, StoredEngine

    if isinstance(found, StoredEngine):
        sections = engine_sections(found.path, found.manifest, all_layers=all_layers)
        return (*sections, _same_bytes(found.also)) if found.also else sections
    return (_plan_section(found),) if isinstance(found, PlanFile) else _onnx_sections(found)


def _same_bytes(keys: tuple[str, ...]) -> Section:
    from trtbuild.cli.engine_view import table

    note = "What is shown above is the record of one key: name another to see its own"
    return table("Other engines that came out as the same bytes", (), (), (*keys, note))


def _plan_section(found: PlanFile) -> Section:
    from trtbuild.cli.engine_view import size, table

    header = found.header
    titles = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
    untold = "not told by the header"
    facts = {
        "path": found.path,
        "kind": f"{titles[header.product]} engine, not of this store",
        "version": header.version or f"{untold}: older than those that tell it",
        "architectures": ", ".join(header.archs) or f"{untold}: the GPU that it was built on",
        "size": size(found.bytes),
        "weights": untold if header.weights_bytes is None else size(header.weights_bytes),
        "state": found.state,
    }
    if found.front:
        facts["in front"] = (
            f"{found.offset} bytes that are not TensorRT's, as Ultralytics writes them "
            f"({', '.join(found.front)}): other runtimes want the file without them"
        )
    note = "a header proves nothing: only an engine of the store can be verified"
    return table("Plan file", ("field", "value"), facts.items(), (note,))


def _onnx_sections(found: OnnxFile) -> tuple[Section, ...]:
    from trtbuild.cli.engine_view import size, table, tensors

    facts = {
        "path": found.path,
        "sha256": f"{found.sha256} (of the graph's content)",
        "opset": ", ".join(f"{domain} {number}" for domain, number in found.opsets.items()),
        "nodes": str(sum(found.operators.values())),
        "parameters": f"{found.parameters} ({size(found.weights_bytes)})",
    }
    operators = [(name, str(count)) for name, count in found.operators.items()]
    return (
        table("ONNX file", ("field", "value"), facts.items()),
        tensors(found.inputs, found.outputs),
        table("Nodes", ("operator", "#nodes"), operators),
    )
