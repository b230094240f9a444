"""``trtbuild inspect``: what is inside an engine or a model file; needs no GPU."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from trtbuild.cli.options import JsonOption, StoreOption

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trtbuild.cli.inspection import Inspected, OnnxFile, PlanFile, StoredEngine
    from trtbuild.engine import Layer, Manifest, TensorSpec
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
        typer.Option("--layers", help="List all layers, not only those that fell short."),
    ] = False,
    store: StoreOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show an engine's manifest and layers, a plan's header, or what an ONNX file holds.

    Without --layers it lists the compute layers that are not in the precision asked for.
    """
    from trtbuild.cli.inspection import examine
    from trtbuild.cli.output import print_json
    from trtbuild.report.terminal import print_section

    found = examine(engine, store)
    if as_json:
        print_json(_document(found))
        return
    for index, section in enumerate(_sections(found, all_layers=layers)):
        if index:
            typer.echo()
        print_section(section, sys.stdout)


def _document(found: Inspected) -> dict[str, object]:
    from msgspec import to_builtins

    from trtbuild.cli.inspection import PlanFile, StoredEngine

    if isinstance(found, StoredEngine):
        return {"schema": 1, "kind": "engine", "path": found.path} | _manifest(found.manifest)
    if isinstance(found, PlanFile):
        plan = {"path": found.path, "bytes": found.bytes, "whole": found.whole}
        return {"schema": 1, "kind": "plan", **plan, "header": found.header}
    return {"schema": 1, "kind": "onnx", **to_builtins(found)}


def _manifest(manifest: Manifest) -> dict[str, object]:
    """Return what is known of an engine; what a report has too is called the same."""
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
        "warnings": manifest.warnings,
        "build_seconds": manifest.build_seconds,
        "peak_rss_bytes": manifest.peak_rss_bytes,
        "created": manifest.created,
        "trtbuild_version": manifest.trtbuild_version,
    }


def _sections(found: Inspected, *, all_layers: bool) -> tuple[Section, ...]:
    from trtbuild.cli.inspection import PlanFile, StoredEngine

    if isinstance(found, StoredEngine):
        return _engine_sections(found, all_layers=all_layers)
    return (_plan_section(found),) if isinstance(found, PlanFile) else _onnx_sections(found)


def _engine_sections(found: StoredEngine, *, all_layers: bool) -> tuple[Section, ...]:
    manifest = found.manifest
    preimage = manifest.preimage
    achieved = manifest.layers.precision_achieved.items()
    facts = {
        "key": manifest.key,
        "sha256": f"{manifest.sha256} (verified)",
        "path": found.path,
        "size": _size(manifest.bytes),
        "target": f"{preimage.target}, {preimage.target.os}",
        "library": f"{preimage.fingerprint.backend} {preimage.fingerprint.version}",
        "network": preimage.network_sha256,
        "precision": f"{manifest.precision_requested} asked for",
        "compute layers": ", ".join(f"{n} {precision}" for precision, n in achieved) or "none",
        "INT8 MACs": f"{100 * manifest.int8_mac_share:.1f} %",
        "fused layers": str(manifest.fused_layers),
        "settings": ", ".join(f"{name}={value}" for name, value in preimage.settings) or "none",
        "built": f"{manifest.created} by trtbuild {manifest.trtbuild_version} in "
        f"{manifest.build_seconds:.1f} s, {_size(manifest.peak_rss_bytes)} of memory",
    }
    sections = [
        _table("Engine", ("field", "value"), facts.items()),
        _tensors(manifest.inputs, manifest.outputs),
        _profiles(manifest),
        _layers(manifest, all_layers=all_layers),
    ]
    if manifest.warnings:
        sections.append(_table("Warnings of the builder", (), (), manifest.warnings))
    return tuple(sections)


def _profiles(manifest: Manifest) -> Section:
    rows = [
        (str(index), each.input, *map(_sizes, (each.min, each.opt, each.max)))
        for index, profile in enumerate(manifest.preimage.profiles)
        for each in profile
    ]
    return _table("Optimization profiles", ("profile", "input", "min", "opt", "max"), rows)


def _layers(manifest: Manifest, *, all_layers: bool) -> Section:
    layers, wanted = manifest.layers.layers, manifest.precision_requested
    compute = [layer for layer in layers if layer.compute]
    short = [layer for layer in compute if layer.precision != wanted]
    shown = layers if all_layers else short
    count = f"{len(compute) - len(short)} of {len(compute)} compute layers are in {wanted}"
    notes = [f"{count}; {len(layers) - len(compute)} other layers compute no products"]
    if not all_layers:
        notes.append(f"--layers lists all {len(layers)}")
    fell_short = short and not all_layers
    title = f"Compute layers that are not in {wanted}" if fell_short else "Layers"
    columns = ("layer", "kind", "precision", "compute", "ONNX nodes")
    return _table(title, columns, map(_layer, shown), notes)


def _layer(layer: Layer) -> tuple[str, ...]:
    compute = "yes" if layer.compute else ""
    return layer.name, layer.kind, layer.precision, compute, ", ".join(layer.nodes)


def _plan_section(found: PlanFile) -> Section:
    header = found.header
    state = "whole: as long as its header says"
    if not found.whole:
        state = f"DAMAGED: its header says {header.bytes} bytes, it has {found.bytes}"
    facts = {
        "path": found.path,
        "kind": "TensorRT-RTX engine, not of this store",
        "version": header.version,
        "architectures": ", ".join(header.archs) or "none that this version knows",
        "size": _size(found.bytes),
        "weights": _size(header.weights_bytes),
        "state": state,
    }
    note = "a header proves nothing: only an engine of the store can be verified"
    return _table("Plan file", ("field", "value"), facts.items(), (note,))


def _onnx_sections(found: OnnxFile) -> tuple[Section, ...]:
    facts = {
        "path": found.path,
        "sha256": f"{found.sha256} (of the graph's content)",
        "opset": ", ".join(f"{domain} {number}" for domain, number in found.opsets.items()),
        "nodes": str(sum(found.operators.values())),
        "parameters": f"{found.parameters} ({_size(found.weights_bytes)})",
    }
    operators = [(name, str(count)) for name, count in found.operators.items()]
    return (
        _table("ONNX file", ("field", "value"), facts.items()),
        _tensors(found.inputs, found.outputs),
        _table("Nodes", ("operator", "#nodes"), operators),
    )


def _tensors(inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> Section:
    rows = [
        (word, spec.name, spec.dtype, f"[{', '.join(map(str, spec.shape))}]")
        for word, specs in (("input", inputs), ("output", outputs))
        for spec in specs
    ]
    return _table("Inputs and outputs", ("", "name", "type", "shape"), rows)


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _size(size_bytes: int) -> str:
    mib = size_bytes / (1 << 20)
    return f"{size_bytes} bytes" + (f" ({mib:.1f} MiB)" if mib >= 1 else "")


def _table(
    title: str,
    columns: tuple[str, ...],
    rows: Iterable[tuple[str, ...]],
    notes: Sequence[str] = (),
) -> Section:
    """Return a section; the name of a column that holds numbers starts with ``#``."""
    from trtbuild.report.sections import Column, Section

    named = (Column(name=name.lstrip("#"), numeric=name.startswith("#")) for name in columns)
    return Section(title=title, columns=tuple(named), rows=tuple(rows), notes=tuple(notes))
