"""Which tensors of a graph a TensorRT calibration cache has scales for, and which it lacks.

A cache names the tensors of the graph that TensorRT parsed. Simplifying keeps names only where
it keeps values (``docs/decisions/0012-sparsity-and-calibration-caches.md``), so an entry holds
for our tensor of its name, and for every tensor that has the same values in another order.
Nothing is guessed: what only looks alike is a hint in the report, never a match.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from trtbuild.engine import Value
from trtbuild.graph.model import load_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir as ir

    from trtbuild.graph import Graph
    from trtbuild.quantization.trt_cache import TrtCache

VERSION = 1
"""Part of the key of a coverage; raised when other entries start to match."""

_SAME_VALUES = frozenset(
    {
        "DepthToSpace",
        "Dropout",
        "Flatten",
        "Identity",
        "Reshape",
        "SpaceToDepth",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators whose first output holds exactly the values of their first input (Dropout where it
does not train), in whatever order: one has the other's scale."""

_INTERNAL = "(Unnamed Layer*"
"""How TensorRT names tensors of layers that its parser inserted; in ONNX none is called so."""

_HINTS = 3
_LIKENESS = 0.6


class Match(Value, frozen=True, kw_only=True):
    """A tensor and the entry of the cache that holds for it, with its scale (float32)."""

    tensor: str
    entry: str
    scale: float


class Unmatched(Value, frozen=True, kw_only=True):
    """A tensor without entry, or an entry without tensor; ``close`` are similar names."""

    name: str
    close: tuple[str, ...]


class Coverage(Value, frozen=True, kw_only=True):
    """What a cache is worth to one graph.

    ``missing`` are tensors that need a scale and get none. Of the entries that were not used,
    ``unneeded`` counts those of tensors that need no scale, ``internal`` those of TensorRT's
    own tensors; ``unknown`` are those that fit no tensor of the graph.
    """

    matches: tuple[Match, ...]
    missing: tuple[Unmatched, ...]
    unneeded: int
    internal: int
    unknown: tuple[Unmatched, ...]


def cover(cache: TrtCache, source: Graph, graph: Graph, needed: Sequence[str]) -> Coverage:
    """Return which of ``needed``, tensors of ``graph``, have a scale in ``cache``.

    ``source`` is the graph that ``graph`` was simplified from. An entry of the tensor's own
    name goes before one of a tensor with the same values.
    """
    models = (load_model(source.path), load_model(graph.path))
    same = _Classes(models)
    by_class: dict[str, str] = {}
    for entry in cache.scales:
        by_class.setdefault(same.of(entry), entry)
    entries = {
        tensor: tensor if tensor in cache.scales else by_class.get(same.of(tensor))
        for tensor in needed
    }
    used = set(entries.values())
    tensors = {name for model in models for name in _names(model)}
    unused = [entry for entry in cache.scales if entry not in used]
    internal = [entry for entry in unused if entry.startswith(_INTERNAL)]
    unknown = [e for e in unused if e not in tensors and not e.startswith(_INTERNAL)]
    missing = [tensor for tensor, entry in entries.items() if entry is None]
    return Coverage(
        matches=tuple(
            Match(tensor=tensor, entry=entry, scale=cache.scales[entry])
            for tensor, entry in entries.items()
            if entry is not None
        ),
        missing=tuple(_unmatched(name, unknown) for name in missing),
        unneeded=len(unused) - len(internal) - len(unknown),
        internal=len(internal),
        unknown=tuple(_unmatched(name, missing) for name in unknown),
    )


def _unmatched(name: str, others: Sequence[str]) -> Unmatched:
    close = difflib.get_close_matches(name, others, n=_HINTS, cutoff=_LIKENESS)
    return Unmatched(name=name, close=tuple(close))


class _Classes:
    """Tensors of several models, by name, put together where they hold the same values."""

    def __init__(self, models: Iterable[ir.Model]) -> None:
        self._parents: dict[str, str] = {}
        for model in models:
            for node in model.graph:
                source = node.inputs[0] if node.inputs else None
                if source is not None and source.name and _same_values(node):
                    self._parents[self.of(node.outputs[0].name or "")] = self.of(source.name)

    def of(self, name: str) -> str:
        """Return one name for all tensors that hold the values of ``name``."""
        while name in self._parents and self._parents[name] != name:
            name = self._parents[name]
        return name


def _same_values(node: ir.Node) -> bool:
    if node.op_type not in _SAME_VALUES or node.domain not in {"", "ai.onnx"}:
        return False
    return node.op_type != "Dropout" or len([v for v in node.inputs if v is not None]) < 3  # noqa: PLR2004  its third input can switch training on


def _names(model: ir.Model) -> Iterable[str]:
    """Return the tensors and constants of the main graph: a cache may have scales of both."""
    graph = model.graph
    yield from (value.name or "" for value in graph.inputs)
    yield from graph.initializers
    yield from (value.name or "" for node in graph for value in node.outputs)
