"""What of an ONNX model is not weights: two of one structure may be one engine, refitted."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import onnx

from trtbuild.engine import Value
from trtbuild.graph.content import content_digest, subgraphs, tensors
from trtbuild.graph.outline import fill, read_outline

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_WEIGHTS = frozenset(
    number
    for name, number in onnx.TensorProto.DataType.items()
    if name.startswith(("FLOAT", "BFLOAT")) or name in {"DOUBLE", "INT8", "INT4", "UINT4"}
)
"""Types whose values no shape, axis or index is computed from."""

_SMALL_BYTES = 4096
"""Scales of a Resize are floating-point numbers that a shape is computed from."""


class Structure(Value, frozen=True, kw_only=True):
    """A model without the values of its weights, and these by name, as digests.

    ``weights`` are the constants of the main graph that some node uses, of floating-point or
    quantized type. Everything else is in ``sha256``: nodes, attributes, names, shapes, types,
    integers, and constants of subgraphs.
    """

    sha256: str
    weights: dict[str, str]

    def changed(self, other: Structure) -> tuple[str, ...]:
        """Return the weights that differ in ``other``, sorted; both have one structure."""
        names = self.weights.keys() | other.weights.keys()
        return tuple(sorted(n for n in names if self.weights.get(n) != other.weights.get(n)))


def structure_of(path: Path) -> Structure:
    """Return the structure of the model in ``path``; its weights are read in pieces.

    Raises:
        SourceError: a tensor's data is missing, outside the folder, or not of its size.
    """
    outline = read_outline(path)
    proto = outline.proto
    content_digest(proto, path, outline.places)  # leaves the digest of each tensor in its place
    used = {name for node in _nodes(proto.graph.node) for name in node.input}
    used |= {value.name for value in proto.graph.output}
    weights = {}
    kept = []
    for tensor in proto.graph.initializer:
        if tensor.name not in used:
            continue  # no part of any engine
        if tensor.data_type in _WEIGHTS:
            weights[tensor.name] = tensor.raw_data.hex()
            tensor.ClearField("raw_data")
        kept.append(tensor)
    kept.sort(key=lambda tensor: tensor.name)
    copies = [_copy(tensor) for tensor in kept]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(copies)
    serialized = proto.SerializeToString(deterministic=True)
    digest = hashlib.sha256(b"trtbuild/structure/v1\n" + serialized).hexdigest()
    return Structure(sha256=digest, weights=weights)


def load_without_weights(path: Path) -> onnx.ModelProto:
    """Return the model in ``path`` with the names, types and shapes of its weights alone.

    For inference, which would copy all values three times: of 800 MB that is 8 s and 3 GiB.
    """
    proto = fill(read_outline(path), path, but=_WEIGHTS)
    for tensor in tensors(proto):
        if tensor.data_type in _WEIGHTS and tensor.ByteSize() > _SMALL_BYTES:
            for values in ("raw_data", "float_data", "double_data", "int32_data"):
                tensor.ClearField(values)
    return proto


def initializers(proto: onnx.ModelProto, folder: Path) -> Mapping[str, object]:
    """Return the constants of the main graph as arrays, those outside of the file too."""
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor, str(folder))
        for tensor in proto.graph.initializer
    }


def _copy(tensor: onnx.TensorProto) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    return copy


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from _nodes(graph.node)
