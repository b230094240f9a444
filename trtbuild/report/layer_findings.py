"""What a reader should know of an engine's layers, worst first, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trtbuild.engine import Layer, Layers, Target

_NAMED = 3
"""As many nodes of one cause are named; all of them are in the list of layers."""

_FEW = 0.1
"""The share of layers that may change layouts or types before anybody is told."""

_BITS: Mapping[str, int] = {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8}
_UNKNOWN = "unknown"
_MIB = 1 << 20


def layer_findings(layers: Layers, target: Target) -> tuple[str, ...]:
    """Return a few lines: layers that fell short, Q/DQ that did not fuse, layers that convert.

    Layers are grouped by cause. A layer that computes in fewer bits than the network asks for
    did not fall short, and one that the network itself keeps in floating point did not either.
    """
    if layers.unread:
        known = "Nothing is known of the precision that this engine computes in"
        return (f"layers could not be read: {layers.unread}. {known}",)
    compute = [layer for layer in layers.layers if layer.compute]
    hidden = [layer for layer in compute if layer.precision == _UNKNOWN]
    found = [
        *(
            _fell_short(group, len(compute), target)
            for group in _groups(layer for layer in compute if fell_short(layer))
        ),
        _hidden(hidden, len(compute)),
        _quantizing([layer for layer in layers.layers if layer.role == "quantize"], target),
        _reformatting(layers.layers),
    ]
    return tuple(line for line in found if line)


def fell_short(layer: Layer) -> bool:
    """Tell whether a layer computes in more bits than the network gives its operands."""
    wanted = _BITS.get(layer.requested, 0)
    return bool(wanted) and _BITS.get(layer.precision, 0) > wanted


def _groups(layers: Iterable[Layer]) -> list[list[Layer]]:
    """Return layers of equal requested and achieved precision together, the most first."""
    groups: dict[tuple[str, str], list[Layer]] = {}
    for layer in layers:
        groups.setdefault((layer.requested, layer.precision), []).append(layer)
    return sorted(groups.values(), key=len, reverse=True)


def _fell_short(group: Sequence[Layer], total: int, target: Target) -> str:
    asked, got = group[0].requested, group[0].precision
    return (
        f"{len(group)} of {counted(total, 'compute layer')} {_are(len(group))} asked for in "
        f"{asked} and computed in {got}: {_named(group)}. {_remedy(asked, target)}"
    )


def _remedy(asked: str, target: Target) -> str:
    if asked not in {"int8", "fp8"}:
        return (
            "The library has no faster kernel for them: see whether the engine is faster than "
            "in fp32 at all (min_speedup)"
        )
    keep = "keep them in floating point (--keep-float NODE), as they only lose accuracy so"
    if target.backend.startswith("tensorrt") and target.arch == "sm_75":
        return f"Convolutions have no {asked} kernels for sm_75: {keep}, or build for sm_80"
    return f"The library has no {asked} kernel for them as they are: {keep}"


def _hidden(group: Sequence[Layer], total: int) -> str:
    if not group:
        return ""
    return (
        f"the precision of {len(group)} of {counted(total, 'compute layer')} is not told: "
        f"{_named(group)}. TensorRT compiled them into one, or their shapes are open"
    )


def _quantizing(group: Sequence[Layer], target: Target) -> str:
    """Tell of Q/DQ that did not fuse; ONNX Runtime has a node for each as a rule."""
    if not group or target.backend == "onnxruntime":
        return ""
    return (
        f"{counted(len(group), 'layer')} only {_verb(len(group), 'quantize')} or "
        f"{_verb(len(group), 'dequantize')}{_moved(group)}: {_named(group)}. What stands next "
        f"to them did not take them in: where that is an operator in floating point, quantize "
        f"it too, or keep both in floating point (--keep-float NODE)"
    )


def _reformatting(layers: Sequence[Layer]) -> str:
    """Tell of layers that convert, where they are more than the few that every engine has."""
    group = [layer for layer in layers if layer.role == "reformat"]
    if len(group) <= _FEW * len(layers):
        return ""
    kinds: dict[str, int] = {}
    for layer in group:
        change = "another layout" if layer.reads == layer.writes else layer.writes
        kinds[f"{layer.reads} to {change}"] = kinds.get(f"{layer.reads} to {change}", 0) + 1
    told = ", ".join(
        f"{number} from {change}"
        for change, number in sorted(kinds.items(), key=lambda k: -k[1])
    )
    return (
        f"{counted(len(group), 'layer')} only {_verb(len(group), 'change')} layout or "
        f"type{_moved(group)}: {told}. They stand where precisions or layouts meet: fewer "
        f"changes of precision along the network need fewer of them"
    )


def _moved(group: Sequence[Layer]) -> str:
    sizes = [layer.moved_bytes for layer in group]
    if any(size is None for size in sizes):
        return ""
    total = sum(size for size in sizes if size is not None)
    return f" ({total / _MIB:.1f} MiB read and written per call)"


def _named(group: Sequence[Layer]) -> str:
    names = [layer.nodes[0] if layer.nodes else layer.name for layer in group]
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _verb(number: int, verb: str) -> str:
    return f"{verb}s" if number == 1 else verb


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
