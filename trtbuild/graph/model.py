"""Read, write and hash ONNX files, external data included; models over 2 GB work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs
from onnx_ir.passes import common

from trtbuild.engine import TensorSpec
from trtbuild.errors import SourceError
from trtbuild.graph import Graph
from trtbuild.graph.content import content_digest, external_locations
from trtbuild.graph.outline import fill, read_outline, write_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnx

    from trtbuild.graph.outline import Outline

_INLINE_LIMIT_BYTES = 1 << 30
"""Weights above this go beside the file; protobuf itself ends at 2 GiB."""

_OPEN_SIZE = -1

_REASON_CHARACTERS = 300
"""Reasons quote whole nodes; the beginning says what is wrong."""


def read_graph(path: Path) -> Graph:
    """Return the graph in an ONNX file: digest, inputs and outputs.

    Weights are hashed in pieces, so memory does not grow with external data.

    Raises:
        SourceError: the file cannot be read or is no ONNX, or its external data is missing,
            short or outside its folder.
    """
    outline = _outline(path)
    proto = outline.proto
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = tuple(_spec(v, path) for v in proto.graph.input if v.name not in constants)
    outputs = tuple(_spec(v, path) for v in proto.graph.output)
    sha256 = content_digest(proto, path, outline.places)
    return Graph(path=path, sha256=sha256, inputs=inputs, outputs=outputs)


def load_model(path: Path) -> ir.Model:
    """Return the model in an ONNX file for surgery; external weights are mapped, not read.

    Raises:
        SourceError: the file cannot be read or is no sound ONNX.
    """
    return _model(fill(_outline(path), path), path)


def load_structure(path: Path) -> ir.Model:
    """Return :func:`load_model`'s answer without the values of large weights, to look at it.

    Raises:
        SourceError: the file cannot be read or is no sound ONNX.
    """
    return _model(_outline(path).proto, path)


def _model(proto: onnx.ModelProto, path: Path) -> ir.Model:
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx-ir raises what it stumbles over: KeyError, TypeError ...
        reason = " ".join(str(error).split())[:_REASON_CHARACTERS]
        raise SourceError(
            f"{path}: not a sound ONNX model: {reason}. Export the model again"
        ) from error
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, path.parent)
    return model


def save_model(model: ir.Model, path: Path) -> Graph:
    """Write ``model`` to ``path`` and return its graph.

    Weights of more than 1 GiB in all go to one file beside it, ``<name>.data``; that file and
    the folder then belong together. Otherwise all weights are in the one file, those too that
    ``model`` maps from external data.

    Raises:
        SourceError: a part of the model has no form in a file.
    """
    initializers = [value for graph in model.graphs() for value in graph.initializers.values()]
    total_bytes = sum(v.const_value.nbytes for v in initializers if v.const_value is not None)
    external = f"{path.name}.data" if total_bytes > _INLINE_LIMIT_BYTES else None
    _load_attributes(model)
    if external is None:
        # onnx-ir would write the old location, which means nothing in another folder.
        ir.external_data.load_to_model(model)
    try:
        if external is None:
            write_model(ir.to_proto(model), path)
        else:
            ir.save(model, path, external_data=external)
    except ir.serde.SerdeError as error:  # a text that is none, somewhere in a damaged file
        reason = " ".join(str(error.__cause__ or error).split())[:_REASON_CHARACTERS]
        raise SourceError(
            f"the model holds what ONNX cannot: {reason}. Export or copy it again"
        ) from error
    return read_graph(path)


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the ONNX file and the files of external data that it names, in order of use."""
    return (path, *(path.parent / name for name in external_locations(_outline(path).proto)))


def _load_attributes(model: ir.Model) -> None:
    """Read the tensors of attributes that are mapped from external data."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for name, attribute in tuple(node.attributes.items()):
            if attribute.type != ir.AttributeType.TENSOR or attribute.is_ref():
                continue
            tensor = attribute.as_tensor()
            if isinstance(tensor, ir.ExternalTensor):
                array = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
                node.attributes[name] = ir.AttrTensor(name, array)


def infer_shapes(model: ir.Model) -> None:
    """Give every tensor the type and shape that inference can tell; unknown operators none."""
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)


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


def _outline(path: Path) -> Outline:
    try:
        outline = read_outline(path)
    except OSError as error:
        raise SourceError(
            f"{path}: cannot read the ONNX file: {error.strerror}. Give the path of a file"
        ) from error
    except DecodeError as error:
        raise SourceError(
            f"{path}: not an ONNX file, or cut short: {error}. Export the model again"
        ) from error
    proto = outline.proto
    if not proto.graph.node and not proto.graph.output:
        raise SourceError(
            f"{path}: holds no ONNX graph (it is empty, or another kind of file). "
            f"Expected a model exported to ONNX"
        )
    bad = next((name for name in _texts(proto.graph) if not isinstance(name, str)), None)
    if bad is not None:
        raise SourceError(
            f"{path}: the name {bad!r} in the graph is no UTF-8 text; the file is damaged. "
            f"Export or copy it again"
        )
    _open_axes(proto.graph)
    return outline


def _open_axes(graph: onnx.GraphProto) -> None:
    """Give open axes that the exporter wrote as the size -1 (older ones do) no size instead."""
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value == _OPEN_SIZE:
                dim.ClearField("dim_value")


def _texts(graph: onnx.GraphProto) -> Iterator[object]:
    """Yield what must be text; protobuf hands out bytes where it is not."""
    yield graph.name
    for item in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        yield item.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _spec(value: onnx.ValueInfoProto, path: Path) -> TensorSpec:
    tensor = value.type.tensor_type
    try:
        dtype = ir.DataType(tensor.elem_type)
    except ValueError as error:
        raise SourceError(
            f"{path}: {value.name!r} has the element type {tensor.elem_type}, which ONNX does "
            f"not know; export the model again"
        ) from error
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
