"""The digest of what an ONNX model computes, wherever its weights lie and whoever wrote it."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import stat
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO

import onnx
import onnx_ir as ir

from trtbuild.errors import SourceError
from trtbuild.graph.snapshots import is_blob

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_CHUNK_BYTES = 1 << 20

_DATA_FIELDS = (
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "string_data",
    "external_data",
    "data_location",
    "doc_string",
    "metadata_props",
)
"""What the digest of a tensor's bytes stands for, and what does not count."""

_NOWHERE: Mapping[int, tuple[int, int]] = MappingProxyType({})


def content_digest(
    proto: onnx.ModelProto, path: Path, places: Mapping[int, tuple[int, int]] = _NOWHERE
) -> str:
    """Return the sha256 of the model in ``path``; uses up ``proto``, which is changed.

    Each tensor's bytes are replaced by their sha256 before the rest is serialized, so inline
    and external weights of equal content are equal, and memory does not grow with external
    data. ``places`` has the offset and length of raw data that ``proto`` lacks and ``path``
    has, by the initializer's index. Producer, documentation, metadata and inferred types do
    not count.

    Raises:
        SourceError: a tensor's data is missing, outside the folder, or not of its size.
    """
    for field in ("producer_name", "producer_version", "doc_string", "model_version", "domain"):
        proto.ClearField(field)
    proto.ClearField("metadata_props")
    for index, tensor in enumerate(tensors(proto)):  # the initializers come first
        digest = _tensor_digest(tensor, path, places.get(index))
        for field in _DATA_FIELDS:
            tensor.ClearField(field)
        tensor.raw_data = digest
    _clear_graph(proto.graph)
    for function in proto.functions:
        function.ClearField("doc_string")
        function.ClearField("metadata_props")
        function.ClearField("value_info")
        _clear_nodes(function.node)
    serialized = proto.SerializeToString(deterministic=True)
    return hashlib.sha256(b"trtbuild/graph/v1\n" + serialized).hexdigest()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; one that is none never keeps us waiting.

    Raises:
        OSError: it cannot be opened, or is a FIFO, a device or a folder.
    """
    stream = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  the caller closes it
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return stream


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def external_locations(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Return the files of external data that a model names, each once, in order of use."""
    external = (tensor for tensor in tensors(proto) if _is_external(tensor))
    return tuple(dict.fromkeys(_entries(tensor).get("location", "") for tensor in external))


def _clear_graph(graph: onnx.GraphProto) -> None:
    for field in ("doc_string", "metadata_props", "value_info"):
        graph.ClearField(field)
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    _clear_nodes(graph.node)


def _clear_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
        for subgraph in subgraphs(node):
            _clear_graph(subgraph)


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that carries data, in subgraphs and functions too, in file order."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
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
        for subgraph in subgraphs(node):
            yield from _graph_tensors(subgraph)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node holds as attributes: the branches of If, a loop's body."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {_text(entry.key): _text(entry.value) for entry in tensor.external_data}


def _text(found: object) -> str:
    """Return what should be text; protobuf hands out bytes where a damaged file has others."""
    return found.decode(errors="replace") if isinstance(found, bytes) else str(found)


def _tensor_digest(
    tensor: onnx.TensorProto, path: Path, place: tuple[int, int] | None
) -> bytes:
    """Return sha256 over the tensor's bytes, little-endian as ONNX stores raw data."""
    what = f"{path}: tensor {tensor.name!r}"
    if tensor.data_type == onnx.TensorProto.STRING:
        return _text_digest(tensor.string_data)
    size_bytes = _size_bytes(tensor, what)
    if _is_external(tensor):
        return _external_digest(tensor, path, size_bytes)
    data = b""
    if place is None:
        data = tensor.raw_data if tensor.HasField("raw_data") else _packed(tensor, what)
    length = len(data) if place is None else place[1]
    if length != size_bytes:
        raise SourceError(
            f"{what} has {length} bytes of data, but its type and shape "
            f"{list(tensor.dims)} need {size_bytes}; export the model again"
        )
    if place is not None:
        return _file_digest(path, *place, what)
    return hashlib.sha256(data).digest()


def _text_digest(texts: Iterable[bytes]) -> bytes:
    total = hashlib.sha256()
    for text in texts:
        total.update(len(text).to_bytes(8, "little") + text)
    return total.digest()


def _size_bytes(tensor: onnx.TensorProto, what: str) -> int:
    """Return the bytes that the tensor's type and shape need; 4-bit elements lie two in one."""
    try:
        bits = int(ir.DataType(tensor.data_type).bitwidth)
    except (ValueError, TypeError) as error:
        raise SourceError(
            f"{what} has the element type {tensor.data_type}, which ONNX does not know; "
            f"export the model again"
        ) from error
    if any(size < 0 for size in tensor.dims):
        raise SourceError(
            f"{what} has a negative size in its shape {list(tensor.dims)}; export the model "
            f"again"
        )
    return int(-(-math.prod(tensor.dims) * bits // 8))


def _packed(tensor: onnx.TensorProto, what: str) -> bytes:
    """Return the bytes of a tensor that is stored in a typed field."""
    try:
        return bytes(ir.serde.deserialize_tensor(tensor).tobytes())
    except (AssertionError, ValueError, TypeError, OverflowError) as error:
        kind = ir.DataType(tensor.data_type).name
        reason = str(error) or f"they stand in the field of another type than {kind}"
        raise SourceError(
            f"{what} has data that do not fit its type and shape {list(tensor.dims)}: "
            f"{reason}. Export the model again"
        ) from error


def _external_digest(tensor: onnx.TensorProto, path: Path, size_bytes: int) -> bytes:
    entries = _entries(tensor)
    location = entries.get("location", "")
    what = f"{path}: external data {location!r} of tensor {tensor.name!r}"
    if len(entries) != len(tensor.external_data):
        raise SourceError(f"{what} names one key twice; export the model again")
    if not _inside(location, path):
        raise SourceError(
            f"{what} lies outside the model's folder; put the file beside the model"
        )
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(size_bytes)))
    except ValueError as error:
        raise SourceError(f"{what} has an offset or length that is no number") from error
    if offset < 0 or length != size_bytes:
        raise SourceError(
            f"{what} is said to have {length} bytes at {offset}, but its type and shape "
            f"{list(tensor.dims)} need {size_bytes}; export the model again"
        )
    return _file_digest(path.parent / location, offset, length, what)


def _file_digest(file: Path, offset: int, length: int, what: str) -> bytes:
    total = hashlib.sha256()
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            if offset + length > size:
                raise SourceError(
                    f"{what} needs bytes {offset} to {offset + length}, but the file has "
                    f"{size}; copy it again, whole"
                )
            stream.seek(offset)
            remaining = length
            while remaining and (chunk := stream.read(min(_CHUNK_BYTES, remaining))):
                total.update(chunk)
                remaining -= len(chunk)
    except OSError as error:
        raise SourceError(
            f"{what} cannot be read: {error.strerror}. Put the file beside the model"
        ) from error
    if remaining:
        raise SourceError(f"{what} became shorter while it was read; copy it again, whole")
    return total.digest()


def _inside(location: str, model: Path) -> bool:
    """Tell whether ``location`` really lies below the model's folder, or is a blob of its."""
    if not location or "\0" in location or Path(location).is_absolute():
        return False
    folder = model.parent
    try:
        below = (folder / location).resolve().is_relative_to(folder.resolve())
        return below or is_blob(location, model)
    except (OSError, RuntimeError):  # links in a circle; RuntimeError before Python 3.13
        return False
