"""Rewrite a floating-point graph so that its products have weights in the 2:4 pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx_ir.passes import common

from trtbuild.engine import Value
from trtbuild.errors import BuildError
from trtbuild.graph.model import load_model, save_model
from trtbuild.graph.passes.rewiring import new_constant
from trtbuild.graph.patterns import fitting_any
from trtbuild.quantization.placement import weight_index
from trtbuild.quantization.sparsity import (
    GROUP,
    compensated,
    is_sparse_2_4,
    lost_energy,
    mask_2_4,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy.typing as npt
    import onnx_ir as ir

    from trtbuild.graph import Graph

    Doubles = npt.NDArray[np.float64]

VERSION = 1
"""Part of the key of a pruned graph; raised when it starts to give other graphs."""

_OPERATORS = ("Conv", "Gemm", "MatMul")
"""What has sparse kernels; a ConvTranspose has none."""

_MATRIX = 2


@dataclass(frozen=True, kw_only=True)
class Prunable:
    """A node whose weight fits the pattern: which input it is, and the axis that is summed.

    ``data`` is the tensor that the weight is multiplied with, ``data_axis`` the axis of it that
    is summed (of a convolution its channels).
    """

    node: str
    weight: int
    axis: int
    data: str
    data_axis: int


class DenseLayer(Value, frozen=True, kw_only=True):
    """A node that keeps its dense weight, and why."""

    node: str
    reason: str


class SparseLayer(Value, frozen=True, kw_only=True):
    """A node whose weight is 2:4 now.

    ``lost`` is the mean squared error of its outputs as a part of their mean square, on
    calibration data and before any later error; None without data.
    """

    node: str
    weights: int
    lost: float | None


class Pruned(Value, frozen=True, kw_only=True):
    """What pruning did; ``weights`` counts those of sparse and dense layers together."""

    sparse: tuple[SparseLayer, ...]
    dense: tuple[DenseLayer, ...]
    weights: int


def prunable(graph: Graph, keep_dense: tuple[str, ...]) -> tuple[Prunable, ...]:
    """Return the nodes of ``graph`` that :func:`prune` will change.

    ``keep_dense`` are node names or shell patterns over them.
    """
    found = _all_judged(load_model(graph.path), keep_dense)
    return tuple(each for _, each in found if isinstance(each, Prunable))


def prune(
    graph: Graph,
    keep_dense: tuple[str, ...],
    moments: Iterable[Mapping[str, Doubles]],
    out: Path,
) -> tuple[Graph, Pruned]:
    """Return ``graph`` with 2:4 weights, written to ``out``, and what became of each layer.

    ``moments`` are the mean products of the inputs of each node, some nodes after the others
    (:mod:`trtbuild.quantization.input_products`), or nothing. With them a weight
    counts as its magnitude times the root mean square of what it is multiplied with (Wanda,
    arXiv:2306.11695), and those that stay make up for those that go. Without them its magnitude
    alone counts. A weight that others read too is copied: they keep the dense one.

    Raises:
        BuildError: no node fits the pattern.
    """
    model = load_model(graph.path)
    nodes = {node.name or "": node for node in model.graph}
    found = _all_judged(model, keep_dense)
    layers = {each.node: each for _, each in found if isinstance(each, Prunable)}
    dense = tuple(each for _, each in found if isinstance(each, DenseLayer))
    weights = sum(_weight(node).size for node, each in found if each is not None)
    sparse: dict[str, SparseLayer] = {}
    for group in moments:
        for name, moment in group.items():
            sparse[name] = _rewrite(model.graph, nodes[name], layers[name], moment)
    for name, layer in layers.items():
        if name not in sparse:
            sparse[name] = _rewrite(model.graph, nodes[name], layer, None)
    if not sparse:
        reasons = "; ".join(f"{each.node!r}: {each.reason}" for each in dense[:5])
        raise BuildError(
            f"{graph.path}: no layer can be 2:4 sparse ({reasons or 'there is no layer'}). "
            f"Leave out sparsity"
        )
    common.RemoveUnusedNodesPass()(model)
    result = save_model(model, out)
    ordered = tuple(sparse[name] for name in layers)
    return result, Pruned(sparse=ordered, dense=dense, weights=weights)


def _all_judged(
    model: ir.Model, keep_dense: tuple[str, ...]
) -> list[tuple[ir.Node, Prunable | DenseLayer | None]]:
    kept = fitting_any([node.name or "" for node in model.graph], keep_dense)
    return [(node, _judged(node, kept)) for node in model.graph]


def _judged(node: ir.Node, kept: frozenset[str]) -> Prunable | DenseLayer | None:
    """Return how ``node`` can be pruned, why it cannot, or None where it is no layer."""
    index = weight_index(node)
    if node.op_type not in _OPERATORS or index is None:
        return None
    data, name = node.inputs[1 - index], node.name or ""
    if data is None or data.is_initializer():
        return None
    array = _weight(node)
    reason = ""
    if name in kept:
        reason = "the recipe keeps it dense"
    elif node.attributes.get_int("group", 1) != 1:
        reason = "sparse kernels take no groups"
    elif node.attributes.get_int("transA", 0):
        reason = "its data is transposed"
    elif node.op_type != "Conv" and array.ndim != _MATRIX:
        reason = f"its weight has {array.ndim} axes, not two"
    axis, data_axis = _axes(node, index)
    if not reason and array.shape[axis] % GROUP:
        reason = f"{array.shape[axis]} inputs, not a multiple of {GROUP}"
    if reason:
        return DenseLayer(node=name, reason=reason)
    return Prunable(
        node=name, weight=index, axis=axis, data=data.name or "", data_axis=data_axis
    )


def _axes(node: ir.Node, index: int) -> tuple[int, int]:
    """Return the axis that a product sums over, of the weight and of the data."""
    if node.op_type == "Conv":
        return 1, 1
    if node.op_type == "Gemm":
        return node.attributes.get_int("transB", 0), -1
    return (0, -1) if index == 1 else (1, -2)


def _weight(node: ir.Node) -> npt.NDArray[np.float32]:
    value = node.inputs[weight_index(node) or 0]
    if value is None or value.const_value is None:
        raise ValueError(f"{node.name} has no weight")
    return np.asarray(value.const_value.numpy())


def _rewrite(
    graph: ir.Graph, node: ir.Node, found: Prunable, moments: Doubles | None
) -> SparseLayer:
    array = _weight(node)
    rows = np.moveaxis(array, found.axis, 1).reshape(array.shape[1 - found.axis], -1)
    dense = rows.astype(np.float64)
    shape = np.moveaxis(array, found.axis, 1).shape
    energy = np.ones(dense.shape[1]) if moments is None else np.diag(moments)
    # A tensor of zeros tells nothing: then the magnitude alone counts.
    scores = np.abs(dense) * (np.sqrt(energy) if energy.any() else 1.0)
    mask = mask_2_4(scores.reshape(shape), 1).reshape(dense.shape)
    result = dense * mask if moments is None else compensated(dense, mask, moments)
    sparse = np.moveaxis(result.reshape(shape), 1, found.axis).astype(array.dtype)
    value = new_constant(graph, f"{found.node}.sparse_weight", np.ascontiguousarray(sparse))
    node.replace_input_with(found.weight, value)
    return SparseLayer(
        node=found.node,
        weights=array.size,
        lost=None if moments is None else lost_energy(dense, result, moments),
    )


def broken(graph: Graph, nodes: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of ``nodes`` whose weight in ``graph`` is not 2:4, whatever its type is now.

    Casts, and the DequantizeLinear of integer codes, are looked through. A node that another
    stage put in place of one of ``nodes`` is not found, and counts as broken.
    """
    model = load_model(graph.path)
    by_name = {node.name or "": node for node in model.graph}
    return tuple(name for name in nodes if not _holds(by_name.get(name)))


def _holds(node: ir.Node | None) -> bool:
    if node is None or node.op_type not in _OPERATORS:
        return False
    for index in (1, 0):
        array = _stored(node.inputs[index])
        if array is not None:
            return is_sparse_2_4(array, _axes(node, index)[0])
    return False


def _stored(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """Return the constant behind ``value``: itself, or what is cast or dequantized to it.

    Codes are taken less their zero point, so that 0 stands for 0.
    """
    zero: npt.NDArray[np.generic] | None = None
    while value is not None and value.const_value is None:
        producer = value.producer()
        if producer is None or producer.op_type not in {"Cast", "DequantizeLinear"}:
            return None
        if producer.op_type == "DequantizeLinear" and len(producer.inputs) > 2:  # noqa: PLR2004  its zero point
            point = producer.inputs[2]
            zero = point.const_value.numpy() if point and point.const_value else None
        value = producer.inputs[0]
    if value is None or value.const_value is None:
        return None
    array = value.const_value.numpy()
    if zero is None or not np.any(zero):
        return np.asarray(array)
    if zero.size > 1:
        return None
    return np.asarray(array.astype(np.int32) - zero.astype(np.int32).reshape(()))
