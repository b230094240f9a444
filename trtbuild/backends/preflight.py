"""Checks of a graph before a parser sees it: what libraries accept, then get wrong or die of.

Measured on TensorRT-RTX 1.7.1: a constant integer division by zero kills the process, a
file without nodes parses, negative sizes are accepted. onnx's checker finds none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from trtbuild.backends import staging
from trtbuild.errors import BuildError
from trtbuild.graph.content import tensors
from trtbuild.graph.outline import fill, read_outline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from trtbuild.graph import Graph

_MAX_DEPTH = 10_000
"""TensorRT-RTX took 34 s for a chain of 5,000 nodes, and longer chains take disproportionately
more."""

_DIVISIONS = frozenset({"Div", "Mod"})
_INTEGERS = frozenset(
    {
        onnx.TensorProto.INT8,
        onnx.TensorProto.INT16,
        onnx.TensorProto.INT32,
        onnx.TensorProto.INT64,
        onnx.TensorProto.UINT8,
        onnx.TensorProto.UINT16,
        onnx.TensorProto.UINT32,
        onnx.TensorProto.UINT64,
    }
)
_OTHERS = frozenset(onnx.TensorProto.DataType.values()) - _INTEGERS


def check(graph: Graph) -> onnx.ModelProto:
    """Return the model of ``graph``, as staged, after the checks of any backend.

    It lacks its external data, and large weights that are no integers.

    Raises:
        BuildError: the model is invalid or holds what kills a builder; the message names the
        node.
    """
    model = fill(staging.read(graph.path), graph.path, but=_OTHERS)
    _check_onnx(graph.path, model)
    _check_sizes(graph.path, model)
    values = constants(model)
    for node in staging.all_nodes(model):
        if node.op_type in _DIVISIONS and len(node.input) > 1:
            divisor = values.get(node.input[1])
            if divisor is not None and _is_integer_zero(divisor):
                message = (
                    f"{graph.path}: node {staging.user_name(node)!r} ({node.op_type}) divides "
                    f"integers by the constant 0 in {node.input[1]!r}: correct the constant"
                )
                raise BuildError(message)
    _check_depth(graph.path, model)
    return model


def constants(model: onnx.ModelProto) -> Mapping[str, onnx.TensorProto]:
    """Return the constant tensors by name: initializers, and outputs of Constant nodes."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in staging.all_nodes(model):
        if node.op_type == "Constant":
            for attribute in node.attribute:
                tensor = _constant_of(attribute)
                if tensor is not None:
                    values[node.output[0]] = tensor
    return values


def array_of(
    tensor: onnx.TensorProto,
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    """Return the values of a constant, or ``None`` where they lie outside of the file."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    return np.asarray(numpy_helper.to_array(tensor))


def _constant_of(attribute: onnx.AttributeProto) -> onnx.TensorProto | None:
    if attribute.name == "value":
        return attribute.t
    if attribute.name == "value_int":
        return numpy_helper.from_array(np.asarray(attribute.i, np.int64))
    if attribute.name == "value_ints":
        return numpy_helper.from_array(np.asarray(attribute.ints, np.int64))
    return None


def _is_integer_zero(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type not in _INTEGERS:
        return False
    values = array_of(tensor)
    return values is not None and bool((values == 0).any())


def _check_onnx(path: Path, model: onnx.ModelProto) -> None:
    """Run onnx's checker, less its rule that an output has a shape: no library needs one.

    It is given the path where it can be: a model is serialized for it, weights and all.
    """
    subject: str | onnx.ModelProto = str(path)
    lacks = any(not each.type.tensor_type.HasField("shape") for each in model.graph.output)
    external = any(
        tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors(model)
    )
    if lacks and not external:
        subject = fill(read_outline(path), path)
        for output in subject.graph.output:
            output.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(subject)
    except onnx.checker.ValidationError as error:
        message = (
            f"{path}: not valid ONNX: {' '.join(str(error).split())}. Export the model again, "
            "or repair what it names"
        )
        raise BuildError(message) from error
    if not model.graph.node or not model.graph.output:
        message = f"{path}: the model has no nodes or no outputs, so there is nothing to build"
        raise BuildError(message)


def _check_sizes(path: Path, model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if size.HasField("dim_value") and size.dim_value < 1:
                message = (
                    f"{path}: axis {axis} of {value.name!r} has size {size.dim_value}: "
                    "expected a positive size, or a name for a dynamic axis"
                )
                raise BuildError(message)
    for tensor in model.graph.initializer:
        if any(size < 0 for size in tensor.dims):
            message = (
                f"{path}: constant {tensor.name!r} has a negative size in {list(tensor.dims)}"
            )
            raise BuildError(message)


def _check_depth(path: Path, model: onnx.ModelProto) -> None:
    depth: dict[str, int] = {}
    for node, reached in _depths(model, depth):
        if reached > _MAX_DEPTH:
            message = (
                f"{path}: a chain of more than {_MAX_DEPTH} nodes ends at "
                f"{staging.user_name(node)!r}: fold its constants, or express it as fewer "
                "operators"
            )
            raise BuildError(message)


def _depths(
    model: onnx.ModelProto, depth: dict[str, int]
) -> Iterator[tuple[onnx.NodeProto, int]]:
    for node in model.graph.node:  # sorted topologically, or the checker had refused it
        reached = 1 + max((depth.get(name, 0) for name in node.input), default=0)
        depth.update(dict.fromkeys(node.output, reached))
        yield node, reached
