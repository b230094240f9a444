"""Expose inner tensors of a graph as outputs, so that a run can be observed."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import onnx

from trtbuild.graph.model import files_of, load_model, save_model

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from trtbuild.graph import Graph

_BLOCKED = "com.microsoft.nchwc"
"""ONNX Runtime's operators on images whose channels lie in blocks of 8 or 16 (MLAS)."""

_LARGEST_BLOCK = 16
"""A multiple of it fills its blocks, and has no zeros behind its last channel."""


def with_outputs(graph: Graph, tensors: tuple[str, ...], out: Path) -> Graph:
    """Return ``graph`` with ``tensors`` as its only outputs, written to ``out``.

    Nodes that no observed tensor needs are kept; a runtime drops them itself.

    Raises:
        ValueError: a name is no tensor of the main graph.
    """
    model = load_model(graph.path)
    values = {value.name: value for value in model.graph.inputs}
    values.update({v.name: v for node in model.graph for v in node.outputs})
    unknown = [name for name in tensors if name not in values]
    if unknown:
        raise ValueError(f"{graph.path}: no tensors are called {', '.join(unknown)}")
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[name] for name in tensors)
    return save_model(model, out)


def add_outputs(graph: Graph, tensors: tuple[str, ...], out: Path) -> Path:
    """Write ``graph`` with ``tensors`` as further outputs to ``out``; return ``out``.

    Nothing is parsed, since a file of protobuf messages grows by appending (protobuf encoding,
    "Last One Wins": fields of embedded messages are merged). Where weights lie in other files
    they are copied, and the original outputs are gone.

    Raises:
        ValueError: the weights lie in other files, and a name is no tensor of the main graph.
    """
    if len(files_of(graph.path)) > 1:
        return with_outputs(graph, tensors, out).path
    known = {spec.name for spec in graph.outputs}
    more = onnx.ModelProto()
    more.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in tensors if name not in known
    )
    shutil.copyfile(graph.path, out)
    with out.open("ab") as file:
        file.write(more.SerializeToString())
    return out


def expose(optimized: Path, tensors: Iterable[str], out: Path) -> dict[str, str]:
    """Write to ``out`` what computes ``tensors``, outputs of a graph that ONNX Runtime wrote.

    Returns the output of the result that has the values of each tensor, in any order. Where the
    optimized graph holds an image with its channels in blocks, and only reorders it to hand it
    out, the blocks are handed out: same values, no copy. The ``ReorderOutput`` that makes the
    tensor proves that they are its values. Zeros that fill up the last block would not be, so
    images whose channels do not fill their blocks stay reordered. External weights of
    ``optimized`` stay where they are: ``out`` must lie in the same folder.
    """
    model = onnx.load(optimized, load_external_data=False)
    made = {name: node for node in model.graph.node for name in node.output}
    outputs = {name: _blocks(made.get(name)) or name for name in tensors}
    infos = {info.name: info for info in (*model.graph.output, *model.graph.value_info)}
    kept = [infos.get(n, onnx.ValueInfoProto(name=n)) for n in dict.fromkeys(outputs.values())]
    needed = _needed(made, [info.name for info in kept])
    nodes = [node for node in model.graph.node if any(name in needed for name in node.output)]
    constants = [t for t in model.graph.initializer if t.name in needed]
    for field, items in (("node", nodes), ("initializer", constants), ("output", kept)):
        copies = [type(item).FromString(item.SerializeToString()) for item in items]
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(copies)
    onnx.save(model, out)
    return outputs


def _blocks(node: onnx.NodeProto | None) -> str:
    """Return the blocks that ``node`` puts into order, empty if it does not, or of gaps."""
    if node is None or (node.domain, node.op_type) != (_BLOCKED, "ReorderOutput"):
        return ""
    channels = next((a.i for a in node.attribute if a.name == "channels"), 1)
    return node.input[0] if channels % _LARGEST_BLOCK == 0 else ""


def _needed(made: dict[str, onnx.NodeProto], names: list[str]) -> set[str]:
    """Return the tensors that ``names`` are computed from, and those."""
    needed: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in made:
            waiting.extend(made[name].input)
            waiting.extend(_outer_inputs(made[name]))
    return needed


def _outer_inputs(node: onnx.NodeProto) -> Iterable[str]:
    """Yield the names that subgraphs of ``node`` read; some of them are their own."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for output in graph.output:
                yield output.name
            for inner in graph.node:
                yield from inner.input
                yield from _outer_inputs(inner)
