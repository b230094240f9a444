"""What ``trtbuild inspect`` shows of an engine of the store, in which order and words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from trtbuild.report.layer_findings import fell_short, layer_findings
from trtbuild.report.sections import Column, Section

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trtbuild.engine import Layer, Manifest, TensorSpec

_SLOWEST = 15
"""As many layers are shown with times, of however many; they have most of the time."""

_KINDS = 5

_QUANTIZER = re.compile(r"(?:Quantize|Dequantize)Linear(?:_\d+)?$")


def engine_sections(path: str, manifest: Manifest, *, all_layers: bool) -> tuple[Section, ...]:
    """Return the sections of an engine whose bytes lie, verified, in ``path``."""
    found = [
        _engine(path, manifest),
        tensors(manifest.inputs, manifest.outputs),
        _profiles(manifest),
        _layers(manifest, all_layers=all_layers),
    ]
    lines = layer_findings(manifest.layers, manifest.preimage.target)
    if lines:
        found.append(table("Findings in its layers", (), (), lines))
    if manifest.warnings:
        found.append(table("Warnings of the builder", (), (), manifest.warnings))
    return tuple(found)


def _engine(path: str, manifest: Manifest) -> Section:
    preimage, layers = manifest.preimage, manifest.layers
    achieved = layers.precision_achieved
    counts = ", ".join(f"{number} in {word}" for word, number in achieved.items())
    shares = ", ".join(f"{100 * part:.1f} % in {word}" for word, part in _shares(manifest))
    facts = {
        "key": manifest.key,
        "sha256": f"{manifest.sha256} (verified)",
        "path": path,
        "size": size(manifest.bytes),
        "target": f"{preimage.target}, {preimage.target.os}",
        "library": f"{preimage.fingerprint.backend} {preimage.fingerprint.version}",
        "network": f"{preimage.network_sha256} (the graph it was built of)",
        "precision": f"{manifest.precision_requested} asked for",
        "compute layers": counts or "none",
        "multiplications": shares or "not known",
        "fused layers": f"{manifest.fused_layers} of {len(_working(layers.layers))} do the "
        "work of more than one operator",
        "settings": ", ".join(f"{name}={value}" for name, value in preimage.settings) or "none",
        "built": f"{manifest.created} by trtbuild {manifest.trtbuild_version} in "
        f"{manifest.build_seconds:.1f} s, {size(manifest.peak_rss_bytes)} of memory",
    }
    return table("Engine", ("field", "value"), facts.items())


def _shares(manifest: Manifest) -> list[tuple[str, float]]:
    return sorted(manifest.mac_share.items(), key=lambda item: -item[1])


def _profiles(manifest: Manifest) -> Section:
    rows = [
        (str(index), each.input, *map(_sizes, (each.min, each.opt, each.max)))
        for index, profile in enumerate(manifest.preimage.profiles)
        for each in profile
    ]
    return table("Optimization profiles", ("profile", "input", "min", "opt", "max"), rows)


def _layers(manifest: Manifest, *, all_layers: bool) -> Section:
    layers, wanted = manifest.layers.layers, manifest.precision_requested
    timed = any(layer.milliseconds is not None for layer in layers)
    compute = [layer for layer in layers if layer.compute]
    others = [layer for layer in compute if layer.precision != wanted]
    working = _working(layers)
    shown: Sequence[Layer] = working if all_layers else others
    title = "Layers" if all_layers or not others else f"Compute layers that are not in {wanted}"
    notes = _layer_notes(manifest, compute, others)
    if timed:
        shown = sorted(working, key=lambda layer: -(layer.milliseconds or 0.0))
        shown = shown if all_layers else shown[:_SLOWEST]
        title = (
            "Layers, the slowest first" if all_layers else f"The {len(shown)} slowest layers"
        )
        notes += _time_notes(layers, shown)
    if len(shown) < len(working):
        notes.append(f"--layers lists all {len(working)}")
    columns = ["layer", "kind", "asked for", "runs in", "ONNX nodes"]
    rows = [_layer(layer) for layer in shown]
    if timed:
        columns[0:0] = ["#ms", "#share"]
        total = _total_ms(layers) or 1.0
        rows = [(*_time(layer, total), *row) for layer, row in zip(shown, rows, strict=True)]
    return table(title, tuple(columns), rows, notes)


def _working(layers: Iterable[Layer]) -> list[Layer]:
    """Return the layers that do something; the others wait, or work on shapes."""
    return [layer for layer in layers if layer.precision != "none" or layer.nodes]


def _layer_notes(
    manifest: Manifest, compute: Sequence[Layer], others: Sequence[Layer]
) -> list[str]:
    wanted, layers = manifest.precision_requested, manifest.layers.layers
    done = f"{len(compute) - len(others)} of {len(compute)} compute layers are in {wanted}"
    working = len(_working(layers))
    notes = [f"{done}; {working - len(compute)} other layers compute no products"]
    if idle := len(layers) - working:
        notes.append(f"{idle} more only wait for each other, or work on shapes")
    short = sum(map(fell_short, others))
    kept = sum(not fell_short(layer) for layer in others if layer.requested)
    if short:
        notes.append(f"{short} of the others fell short of what the network asks for")
    if kept:
        notes.append(
            f"{kept} of the others run in what the network asks for: quantization left them "
            f"out, by a policy or since the backend has no {wanted} for them"
        )
    return notes


def _time_notes(layers: Sequence[Layer], shown: Sequence[Layer]) -> list[str]:
    total, part = _total_ms(layers), _total_ms(shown)
    share = (
        f", those shown {100 * part / total:.0f} %"
        if total and len(shown) < len(layers)
        else ""
    )
    kinds: dict[str, float] = {}
    for layer in layers:
        kinds[layer.kind] = kinds.get(layer.kind, 0.0) + (layer.milliseconds or 0.0)
    most = sorted(kinds.items(), key=lambda item: -item[1])[:_KINDS]
    parts = ", ".join(f"{kind} {100 * ms / (total or 1.0):.0f} %" for kind, ms in most)
    where = "medians on this machine, at the shapes of opt, on random numbers"
    return [
        f"all layers together take {total:.3f} ms per call{share}: {where}",
        f"by kind: {parts}",
        "the profiler takes time too: compare layers; trtbuild verify compares engines",
    ]


def _total_ms(layers: Sequence[Layer]) -> float:
    return sum(layer.milliseconds or 0.0 for layer in layers)


def _time(layer: Layer, total: float) -> tuple[str, str]:
    if layer.milliseconds is None:
        return "-", "-"
    return f"{layer.milliseconds:.3f}", f"{100 * layer.milliseconds / total:.1f} %"


def _layer(layer: Layer) -> tuple[str, ...]:
    """Return the cells of a layer; Q/DQ beside other nodes are counted, not named."""
    named = [name for name in layer.nodes if not _QUANTIZER.search(name)] or list(layer.nodes)
    rest = len(layer.nodes) - len(named)
    nodes = ", ".join(named) + (f" (+{rest} Q/DQ)" if rest else "")
    kind = f"{layer.kind} ({layer.role})" if layer.role else layer.kind
    return layer.name, kind, layer.requested, layer.precision, nodes


def tensors(inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> Section:
    """Return the inputs and outputs of an engine or a graph."""
    rows = [
        (word, spec.name, spec.dtype, f"[{', '.join(map(str, spec.shape))}]")
        for word, specs in (("input", inputs), ("output", outputs))
        for spec in specs
    ]
    return table("Inputs and outputs", ("", "name", "type", "shape"), rows)


def size(size_bytes: int) -> str:
    """Return a size in bytes and, where it helps, in MiB."""
    mib = size_bytes / (1 << 20)
    return f"{size_bytes} bytes" + (f" ({mib:.1f} MiB)" if mib >= 1 else "")


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def table(
    title: str,
    columns: tuple[str, ...],
    rows: Iterable[tuple[str, ...]],
    notes: Sequence[str] = (),
) -> Section:
    """Return a section; the name of a column that holds numbers starts with ``#``."""
    named = (Column(name=name.lstrip("#"), numeric=name.startswith("#")) for name in columns)
    return Section(title=title, columns=tuple(named), rows=tuple(rows), notes=tuple(notes))
