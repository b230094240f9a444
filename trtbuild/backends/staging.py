"""A private copy of a model for a parser that cannot be trusted with the original.

Parsers follow links out of a model's folder, take two nodes of one name for one, and break
their own log on a node name with a line feed. The copy has plain files only, and one generated
name per node; tensor names are the model's interface and stay.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs

from trtbuild.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_COPY_BYTES = 8 << 20
_STAGED_NAME = re.compile(r"onnx_node_(\d+)(?!\d)")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the user's model: its name there and its operator."""

    name: str
    operator: str


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A private copy of a model.

    ``nodes`` are the user's nodes by staged name, in the graph's order. ``model`` is the staged
    model without the data that lies outside of its file; ``data_bytes`` is the size of that.
    """

    path: Path
    model: onnx.ModelProto
    nodes: Mapping[str, Node]
    data_bytes: int

    def original(self, text: str) -> str:
        """Return ``text`` of a library with the user's node names in place of staged ones."""
        return _STAGED_NAME.sub(
            lambda match: self.nodes[match[0]].name if match[0] in self.nodes else match[0],
            text,
        )


def read(path: Path) -> onnx.ModelProto:
    """Return the model in ``path`` without its external data.

    Raises:
        BuildError: the file is no ONNX model.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        message = (
            f"{path}: not an ONNX model, or a truncated one ({error}): export or copy it again"
        )
        raise BuildError(message) from error
    except OSError as error:
        message = f"{path}: cannot read the model: {error.strerror}"
        raise BuildError(message) from error
    if not model.graph.node and not model.graph.output:
        message = f"{path}: holds no ONNX graph (no nodes, no outputs): export or copy it again"
        raise BuildError(message)
    return model


def stage(path: Path, folder: Path) -> Staged:
    """Copy the model in ``path`` and its external data into the new private ``folder``.

    Raises:
        BuildError: the model cannot be read, or its data lies outside of its folder, is no
            regular file, or is a hard link to a file elsewhere.
    """
    model = read(path)
    folder.mkdir(mode=0o700)
    data_bytes = _copy_data(model, path, folder)
    nodes = {}
    for index, node in enumerate(all_nodes(model)):
        staged_name = f"onnx_node_{index}"
        nodes[staged_name] = Node(name=user_name(node), operator=node.op_type)
        node.name = staged_name
    copy = folder / "model.onnx"
    onnx.save(model, copy)
    return Staged(path=copy, model=model, nodes=nodes, data_bytes=data_bytes)


def user_name(node: onnx.NodeProto) -> str:
    """Return what messages call a node: its name, or one made from its first output."""
    if node.name:
        return node.name
    return f"node_of_{node.output[0]}" if node.output else f"node_of_{node.op_type}"


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield each node of a model, those of subgraphs and local functions included."""
    yield from _nodes(model.graph.node)
    for function in model.functions:
        yield from _nodes(function.node)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in _subgraphs(node):
            yield from _nodes(graph.node)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield each constant tensor of a model, wherever it stands."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for graph in _subgraphs(node):
            yield from _graph_tensors(graph)


def _copy_data(model: onnx.ModelProto, path: Path, folder: Path) -> int:
    """Copy every external file once, under a generated name; return their total bytes."""
    copies: dict[str, str] = {}
    total = 0
    for tensor in tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entry = next((item for item in tensor.external_data if item.key == "location"), None)
        if entry is None:
            message = f"{path}: tensor {tensor.name!r} is external and names no file"
            raise BuildError(message)
        if entry.value not in copies:
            copies[entry.value] = f"data_{len(copies)}"
            total += _copy_file(path, entry.value, folder / copies[entry.value])
        entry.value = copies[entry.value]
    return total


def _copy_file(model: Path, location: str, copy: Path) -> int:
    """Copy external data into ``copy`` and return its bytes; never through a link that leaves.

    The file is opened by its resolved path without following a last link, and what was opened
    is judged, so that a file swapped after the check is refused too.
    """
    parts = PurePosixPath(location)
    if "\0" in location or not location or parts.is_absolute() or ".." in parts.parts:
        message = (
            f"{model}: external data {location!r} is not a path below the model's folder: save "
            f"the model again with its data beside it"
        )
        raise BuildError(message)
    folder = model.parent.resolve()
    try:
        resolved = (folder / location).resolve(strict=True)
        if not resolved.is_relative_to(folder):
            message = (
                f"{model}: external data {location!r} is a link that leaves the model's folder "
                f"(to {resolved}): copy the file in its place"
            )
            raise BuildError(message)
        source = os.open(resolved, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "links in a circle"
        message = (
            f"{model}: external data {location!r} cannot be read: {reason}. Put the "
            f"file beside the model, where it was when the model was saved"
        )
        raise BuildError(message) from error
    with os.fdopen(source, "rb") as opened:
        _refuse_odd_file(model, location, os.fstat(opened.fileno()))
        return _copy_open_file(opened.fileno(), copy)


def _refuse_odd_file(model: Path, location: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        message = f"{model}: external data {location!r} is not a regular file"
        raise BuildError(message)
    if status.st_nlink > 1:
        message = (
            f"{model}: external data {location!r} is a hard link to a file that has "
            f"{status.st_nlink} names, so it may belong to somebody else: copy the file in its "
            f"place"
        )
        raise BuildError(message)


def _copy_open_file(source: int, copy: Path) -> int:
    target = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    total = 0
    try:
        while sent := os.sendfile(target, source, total, _COPY_BYTES):
            total += sent
    finally:
        os.close(target)
    return total
