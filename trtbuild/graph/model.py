"""Read, write and hash ONNX files, external data included; models over 2 GB work."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from trtbuild.engine import TensorSpec
from trtbuild.errors import SourceError
from trtbuild.graph import Graph

if TYPE_CHECKING:
    from collections.abc import Iterator

_INLINE_LIMIT_BYTES = 1 << 30
"""Weights above this go beside the file; protobuf itself ends at 2 GiB."""

_CHUNK_BYTES = 1 << 20

_TYPED_FIELDS = (
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
)


def read_graph(path: Path) -> Graph:
    """Return the graph in an ONNX file: digest, inputs and outputs.

    Weights are hashed in pieces, so memory does not grow with external data.

    Raises:
        SourceError: the file cannot be read or is no ONNX, or its external data is missing,
            short or outside its folder.
    """
    proto = _parse(path)
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = tuple(_spec(v) for v in proto.graph.input if v.name not in constants)
    outputs = tuple(_spec(v) for v in proto.graph.output)
    return Graph(path=path, sha256=_digest(proto, path), inputs=inputs, outputs=outputs)


def load_model(path: Path) -> ir.Model:
    """Return the model in an ONNX file for surgery; external weights are mapped, not read."""
    try:
        return ir.load(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path}: cannot be read as ONNX: {error}") from error


def save_model(model: ir.Model, path: Path) -> Graph:
    """Write ``model`` to ``path`` and return its graph.

    Weights of more than 1 GiB in all go to one file beside it, ``<name>.data``; that file and
    the folder then belong together.
    """
    total_bytes = sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )
    external = f"{path.name}.data" if total_bytes > _INLINE_LIMIT_BYTES else None
    ir.save(model, path, external_data=external)
    return read_graph(path)


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the ONNX file and the files of external data that it names, in order of use."""
    names = dict.fromkeys(
        _location(tensor) for tensor in _tensors(_parse(path).graph) if _is_external(tensor)
    )
    return (path, *(path.parent / name for name in names))


def node_names(model: ir.Model) -> None:
    """Give every node of the main graph a name of its own, so that a policy can refer to it."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph):
        base = node.name or f"{node.op_type}_{index}"
        name, suffix = base, 1
        while name in seen:
            name, suffix = f"{base}_{suffix}", suffix + 1
        seen.add(name)
        node.name = name


def _parse(path: Path) -> onnx.ModelProto:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(
            f"{path}: cannot read the ONNX file: {error.strerror}. Give the path of a file"
        ) from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError has no stable import path
        raise SourceError(
            f"{path}: not an ONNX file, or cut short: {error}. Export the model again"
        ) from error
    if not proto.graph.node and not proto.graph.output:
        raise SourceError(
            f"{path}: holds no ONNX graph (it is empty, or another kind of file). "
            f"Expected a model exported to ONNX"
        )
    return proto


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = ir.DataType(tensor.elem_type)
    name = "bfloat16" if dtype == ir.DataType.BFLOAT16 else _numpy_name(dtype)
    dims = tuple(_dim(dim) for dim in tensor.shape.dim)
    return TensorSpec(name=value.name, dtype=name, shape=dims)


def _numpy_name(dtype: ir.DataType) -> str:
    try:
        return str(dtype.numpy().name)
    except TypeError:
        return dtype.name.lower()


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) or "?"


def _digest(proto: onnx.ModelProto, path: Path) -> str:
    """Hash what a runtime computes with; changes ``proto``, which the caller gives away.

    Each tensor's bytes are replaced by their sha256 before the rest is serialized, so inline
    and external weights of equal content are equal. Producer, documentation and metadata go.
    """
    for field in ("producer_name", "producer_version", "doc_string", "model_version", "domain"):
        proto.ClearField(field)
    proto.ClearField("metadata_props")
    for tensor in _tensors(proto.graph):
        digest = _tensor_digest(tensor, path)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.ClearField("doc_string")
        for field in _TYPED_FIELDS:
            tensor.ClearField(field)
        tensor.raw_data = digest
    _clear_documentation(proto.graph)
    proto.graph.ClearField("value_info")
    return hashlib.sha256(
        b"trtbuild/graph/v1\n" + proto.SerializeToString(deterministic=True)
    ).hexdigest()


def _clear_documentation(graph: onnx.GraphProto) -> None:
    graph.ClearField("doc_string")
    graph.ClearField("metadata_props")
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    for node in graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for subgraph in (attribute.g, *attribute.graphs):
                if subgraph.node:
                    _clear_documentation(subgraph)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that carries data, in subgraphs too, in the order of the file."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for subgraph in (attribute.g, *attribute.graphs):
                if subgraph.node or subgraph.initializer:
                    yield from _tensors(subgraph)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _location(tensor: onnx.TensorProto) -> str:
    for entry in tensor.external_data:
        if entry.key == "location":
            return str(entry.value)
    return ""


def _tensor_digest(tensor: onnx.TensorProto, path: Path) -> bytes:
    """Return sha256 over the tensor's bytes, little-endian as ONNX stores raw data."""
    if _is_external(tensor):
        return _external_digest(tensor, path)
    if tensor.HasField("raw_data"):
        return hashlib.sha256(tensor.raw_data).digest()
    if tensor.data_type == onnx.TensorProto.STRING:
        total = hashlib.sha256()
        for text in tensor.string_data:
            total.update(len(text).to_bytes(8, "little") + text)
        return total.digest()
    return hashlib.sha256(onnx.numpy_helper.to_array(tensor).tobytes()).digest()


def _external_digest(tensor: onnx.TensorProto, path: Path) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = path.parent / location
    what = f"{path}: external data {location!r} of tensor {tensor.name!r}"
    if Path(location).is_absolute() or not _inside(file, path.parent):
        raise SourceError(
            f"{what} lies outside the model's folder; put the file beside the model"
        )
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", "-1"))
    except ValueError as error:
        raise SourceError(f"{what} has an offset or length that is no number") from error
    if offset < 0:
        raise SourceError(f"{what} has the negative offset {offset}; export the model again")
    total = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            remaining = size - offset if length < 0 else length
            if remaining < 0 or offset + remaining > size:
                raise SourceError(
                    f"{what} needs bytes {offset} to {offset + length}, but the file has "
                    f"{size}; copy it again, whole"
                )
            stream.seek(offset)
            while remaining:
                chunk = stream.read(min(_CHUNK_BYTES, remaining))
                total.update(chunk)
                remaining -= len(chunk)
    except OSError as error:
        raise SourceError(
            f"{what} cannot be read: {error.strerror}. Put the file beside the model"
        ) from error
    return total.digest()


def _inside(file: Path, folder: Path) -> bool:
    """Tell whether the file really lies below the folder, links followed."""
    return file.resolve().is_relative_to(folder.resolve())
