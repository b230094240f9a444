"""A private copy of a model for a parser that cannot be trusted with the original.

Parsers follow links out of a model's folder, take two nodes of one name for one, and break
their own log on a node name with a line feed. The copy has plain files only, and one generated
name per node; tensor names are the model's interface and stay.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs

from trtbuild.errors import BuildError
from trtbuild.graph.content import content_digest, subgraphs, tensors
from trtbuild.graph.outline import read_outline, write_copy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from trtbuild.graph import Graph
    from trtbuild.graph.outline import Outline

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
    model without its large weights and without the data that lies outside of its file.
    """

    path: Path
    model: onnx.ModelProto
    nodes: Mapping[str, Node]

    def original(self, text: str) -> str:
        """Return ``text`` of a library with the user's node names in place of staged ones."""
        return _STAGED_NAME.sub(
            lambda match: self.nodes[match[0]].name if match[0] in self.nodes else match[0],
            text,
        )


def read(path: Path) -> Outline:
    """Return the model in ``path`` without its large weights and its external data.

    Raises:
        BuildError: the file is no ONNX model.
    """
    try:
        outline = read_outline(path)
    except DecodeError as error:
        message = (
            f"{path}: not an ONNX model, or a truncated one ({error}): export or copy it again"
        )
        raise BuildError(message) from error
    except OSError as error:
        message = f"{path}: cannot read the model: {error.strerror}"
        raise BuildError(message) from error
    graph = outline.proto.graph
    if not graph.node and not graph.output:
        message = f"{path}: holds no ONNX graph (no nodes, no outputs): export or copy it again"
        raise BuildError(message)
    return outline


def stage(graph: Graph, folder: Path, limit_bytes: int = sys.maxsize) -> Staged:
    """Copy the model of ``graph`` and its external data into the new private ``folder``.

    What was copied is hashed and compared with the digest that the graph, hence the key of the
    engine, was made of: a file that changed since then builds nothing.

    Raises:
        BuildError: the model cannot be read, is larger than ``limit_bytes`` in all, is not the
            one that ``graph`` describes, or its data lies outside of its folder, is no regular
            file, or is a hard link to one elsewhere.
        SourceError: a tensor's data is missing or not of its size.
    """
    path = graph.path
    outline = read(path)
    model = outline.proto
    folder.mkdir(mode=0o700)
    _Copies(path, folder, limit_bytes - path.stat().st_size).copy_all(model)
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    nodes = _renamed(model)
    copy = folder / "model.onnx"
    sha256 = content_digest(copied, copy, write_copy(outline, path, copy).places)
    if sha256 != graph.sha256:
        message = (
            f"{path}: the model or its data changed while it was built: its digest is "
            f"{sha256[:12]}, expected {graph.sha256[:12]}. Run the command again"
        )
        raise BuildError(message)
    return Staged(path=copy, model=model, nodes=nodes)


def _renamed(model: onnx.ModelProto) -> dict[str, Node]:
    """Give every node of ``model`` a staged name, and return by it what it was."""
    nodes = {}
    for index, node in enumerate(all_nodes(model)):
        staged_name = f"onnx_node_{index}"
        nodes[staged_name] = Node(name=user_name(node), operator=node.op_type)
        node.name = staged_name
    return nodes


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
        for graph in subgraphs(node):
            yield from _nodes(graph.node)


class _Copies:
    """Copies the external files of one model, each once, under generated names."""

    def __init__(self, model: Path, folder: Path, left_bytes: int) -> None:
        self._model = model
        self._folder = folder
        self._left_bytes = left_bytes
        self._copies: dict[str, str] = {}

    def copy_all(self, model: onnx.ModelProto) -> None:
        """Copy what the tensors of ``model`` name, and let them name the copies."""
        for tensor in tensors(model):
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            entries = {entry.key: entry.value for entry in tensor.external_data}
            location = entries.get("location", "")
            if len(entries) != len(tensor.external_data):
                # Readers differ in which of two locations they take.
                raise self._error(location, f"of tensor {tensor.name!r} names one key twice")
            if location not in self._copies:
                name = f"data_{len(self._copies)}"
                self._copy_file(location, self._folder / name)
                self._copies[location] = name
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = self._copies[location]

    def _error(self, location: str, text: str) -> BuildError:
        return BuildError(f"{self._model}: external data {location!r} {text}")

    def _copy_file(self, location: str, copy: Path) -> None:
        """Copy external data into ``copy``; never through a link that leaves.

        The file is opened by its resolved path without following a last link, and what was
        opened is judged, so that a file swapped after the check is refused too.
        """
        with contextlib.ExitStack() as opened:
            descriptor = self._open(location)
            opened.callback(os.close, descriptor)
            self._judge(location, os.fstat(descriptor))
            source = opened.enter_context(open(descriptor, "rb", closefd=False))
            target = opened.enter_context(open(copy, "xb", opener=_private))
            shutil.copyfileobj(source, target, _COPY_BYTES)

    def _judge(self, location: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise self._error(location, "is not a regular file: copy the weights there")
        if status.st_nlink > 1:
            raise self._error(
                location,
                f"is a hard link to a file that has {status.st_nlink} names, so it may belong "
                "to somebody else: copy the file in its place",
            )
        self._left_bytes -= status.st_size
        if self._left_bytes < 0:
            raise self._error(
                location,
                "makes the model larger than the 2 GiB that an engine of this backend can "
                "hold: quantize it or convert it to fp16, or build for another backend",
            )

    def _open(self, location: str) -> int:
        parts = PurePosixPath(location)
        if not location or "\0" in location or parts.is_absolute() or ".." in parts.parts:
            raise self._error(
                location,
                "is not a path below the model's folder: save the model again with its data "
                "beside it",
            )
        folder = self._model.parent.resolve()
        try:
            resolved = (folder / location).resolve(strict=True)
            if resolved == folder:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if resolved.is_relative_to(folder):
                return _open_below(folder, resolved.relative_to(folder).parts)
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            reason = getattr(error, "strerror", None) or error
            raise self._error(
                location,
                f"cannot be read: {reason}. Put the file beside the model, where it was when "
                "the model was saved",
            ) from error
        raise self._error(
            location,
            f"is a link that leaves the model's folder (to {resolved}): copy the file in its "
            "place",
        )


def _open_below(folder: Path, parts: tuple[str, ...]) -> int:
    """Open a file for reading, one part of its path after the other, following no link.

    So a folder that becomes a link after its path was resolved is refused as well.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    place = os.open(folder, flags | os.O_DIRECTORY)
    for part in parts[:-1]:
        try:
            below = os.open(part, flags | os.O_DIRECTORY, dir_fd=place)
        finally:
            os.close(place)
        place = below
    try:
        return os.open(parts[-1], flags | os.O_NONBLOCK, dir_fd=place)
    finally:
        os.close(place)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
