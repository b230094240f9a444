"""Pack the weights of matrix products into blocks of 4-bit codes; activations stay floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trtbuild.engine import Value
from trtbuild.graph.model import infer_shapes, load_model, save_model
from trtbuild.graph.passes.raise_opset import raise_opset
from trtbuild.quantization.blocks import block_size, blocks_of
from trtbuild.quantization.placement import weight_index

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from trtbuild.backends.scheme import WeightScheme
    from trtbuild.graph import Graph
    from trtbuild.quantization.blocks import Blocks

VERSION = 1
"""Part of the key of a packed graph; raised when it starts to give other graphs."""

_OPSETS = {"int4": 21, "nvfp4": 23, "mxfp4": 23}
"""The first opsets whose DequantizeLinear has blocks of these codes (ONNX changelog)."""

_PACKED_TYPES = (ir.DataType.INT4, ir.DataType.FLOAT4E2M1)

_MATRIX = 2


class Packed(Value, frozen=True, kw_only=True):
    """A node whose weight is packed in blocks of ``block`` elements."""

    node: str
    block: int


class Unpacked(Value, frozen=True, kw_only=True):
    """A node whose weight stays as it is, and why."""

    node: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How to pack: ``block`` is the largest size of INT4's blocks.

    The nodes named in ``keep_float`` stay as they are.
    """

    scheme: WeightScheme
    block: int
    keep_float: frozenset[str] = frozenset()


def pack(
    graph: Graph, packing: Packing, out: Path
) -> tuple[Graph, tuple[Packed, ...], tuple[Unpacked, ...]]:
    """Return ``graph`` with packed weights, written to ``out``, and what became of each node.

    A weight is read through a DequantizeLinear of blocks. Gemm's transposed weights are stored
    as they are multiplied, which is the form that every backend fuses.
    """
    model, _ = raise_opset(
        load_model(graph.path),
        _OPSETS[packing.scheme.format],
        _OPSETS[packing.scheme.format],
    )
    packer = _Packer(model, packing)
    packer.write()
    model.graph.sort()
    ir.passes.common.RemoveUnusedNodesPass()(model)
    infer_shapes(model)
    return save_model(model, out), tuple(packer.packed), tuple(packer.unpacked)


def unpack(graph: Graph, out: Path) -> Graph:
    """Return ``graph`` with the values of packed weights as constants, written to ``out``.

    It computes what the packed graph does, on runtimes that have no such codes.
    """
    model = load_model(graph.path)
    scales = [node for node in model.graph if _is_decoder(node, nested=False)]
    for node in [*scales, *(n for n in model.graph if _is_decoder(n, nested=True))]:
        result = node.outputs[0]
        name = f"{result.name}_values"
        constant = ir.val(name, const_value=ir.tensor(_decoded(node), name=name))
        model.graph.register_initializer(constant)
        result.replace_all_uses_with(constant)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    return save_model(model, out)


def _is_decoder(node: ir.Node, *, nested: bool) -> bool:
    """Tell whether a node decodes packed weights, or (not ``nested``) the scales of some."""
    data = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    if data is None or data.const_value is None:
        return False
    if data.const_value.dtype in _PACKED_TYPES:
        return nested
    readers = node.outputs[0].consumers()
    return not nested and any(
        reader.op_type == "DequantizeLinear"
        and reader.inputs[0] is not None
        and reader.inputs[0].const_value is not None
        and reader.inputs[0].const_value.dtype in _PACKED_TYPES
        for reader in readers
    )


def _decoded(node: ir.Node) -> npt.NDArray[np.float32]:
    codes, scale = (_constant(value) for value in node.inputs[:2])
    if scale.ndim:
        axis = node.attributes.get_int("axis", 1)
        scale = np.repeat(scale, node.attributes.get_int("block_size", 1), axis=axis)
    return np.asarray(codes * scale, dtype=np.float32)


def _constant(value: ir.Value | None) -> npt.NDArray[np.float32]:
    if value is None or value.const_value is None:
        raise ValueError("a decoder of weights reads constants")
    return value.const_value.numpy().astype(np.float32)


class _Packer:
    def __init__(self, model: ir.Model, packing: Packing) -> None:
        self._graph = model.graph
        self._packing = packing
        self._weights: dict[tuple[str, bool], tuple[ir.Value, int]] = {}
        self.packed: list[Packed] = []
        self.unpacked: list[Unpacked] = []

    def write(self) -> None:
        for node in tuple(self._graph):
            index = weight_index(node)
            if node.op_type not in self._packing.scheme.compute or index is None:
                continue
            reason = self._reason(node, index)
            if reason:
                self.unpacked.append(Unpacked(node=node.name or "", reason=reason))
            else:
                self._pack(node, index)

    def _reason(self, node: ir.Node, index: int) -> str:
        weight = node.inputs[index]
        if node.name in self._packing.keep_float:
            return "asked for by keep_float"
        tensor = weight.const_value if weight is not None else None
        if tensor is None or len(tensor.shape) != _MATRIX:
            return "its weight is no matrix"
        inner = tensor.shape.numpy()[_inner_axis(node, index)]
        if not self._block(inner):
            return f"its {inner} inputs cannot be cut into blocks of {self._sizes()}"
        return ""

    def _block(self, inner: int) -> int:
        return block_size(inner, self._packing.scheme.format, self._packing.block)

    def _sizes(self) -> str:
        return str(self._packing.scheme.block or "128, 64 or 32")

    def _pack(self, node: ir.Node, index: int) -> None:
        weight = node.inputs[index]
        if weight is None or weight.const_value is None:
            raise ValueError(f"{node.name} has no weight")
        transposed = bool(node.op_type == "Gemm" and node.attributes.get_int("transB", 0))
        key = (weight.name or "", transposed)
        if key not in self._weights:
            matrix = weight.const_value.numpy()
            axis = 0 if transposed else _inner_axis(node, index)
            self._weights[key] = self._decoder(
                key[0], np.ascontiguousarray(matrix.T if transposed else matrix), axis
            )
        value, block = self._weights[key]
        node.replace_input_with(index, value)
        if transposed:
            node.attributes["transB"] = ir.AttrInt64("transB", 0)
        self.packed.append(Packed(node=node.name or "", block=block))

    def _decoder(
        self, name: str, matrix: npt.NDArray[np.float32], axis: int
    ) -> tuple[ir.Value, int]:
        """Return the value of a weight that is read through blocks along ``axis``."""
        scheme = self._packing.scheme
        block = self._block(matrix.shape[axis])
        upright = matrix if axis == 0 else np.ascontiguousarray(matrix.T)
        found = blocks_of(upright, scheme.format, block, scheme.rest)
        name = f"{name}_{scheme.format}_{len(self._weights)}"
        scales = self._scales(name, found, axis)
        codes = self._initializer(f"{name}_codes", _turned(found.codes, axis))
        attributes = {"axis": axis, "block_size": block}
        node = ir.node(
            "DequantizeLinear", [codes, scales], attributes, name=f"{name}_DequantizeLinear"
        )
        return self._append(node, name), block

    def _scales(self, name: str, found: Blocks, axis: int) -> ir.Value:
        if found.scale_codes is None or found.unit is None:
            return self._initializer(f"{name}_scales", _turned(found.scales, axis))
        codes = self._initializer(f"{name}_scale_codes", _turned(found.scale_codes, axis))
        unit = self._initializer(f"{name}_unit", found.unit)
        node = ir.node(
            "DequantizeLinear", [codes, unit], name=f"{name}_scales_DequantizeLinear"
        )
        return self._append(node, f"{name}_scales")

    def _append(self, node: ir.Node, name: str) -> ir.Value:
        result = node.outputs[0]
        result.name, result.type = name, ir.TensorType(ir.DataType.FLOAT)
        self._graph.append(node)
        return result

    def _initializer(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self._graph.register_initializer(value)
        return value


def _turned(array: npt.NDArray[np.generic], axis: int) -> npt.NDArray[np.generic]:
    """Return an array [inner, outer] with its inner axis as ``axis``."""
    return array if axis == 0 else np.ascontiguousarray(array.T)


def _inner_axis(node: ir.Node, index: int) -> int:
    """Return the axis of a weight that the product sums over."""
    if node.op_type == "Gemm":
        return 1 if node.attributes.get_int("transB", 0) else 0
    return 0 if index == 1 else 1
