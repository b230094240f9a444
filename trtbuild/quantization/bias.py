"""Correct biases for the mean error that quantized weights add to a layer's output.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
2019, section 4.2, with measured means instead of those of batch normalization: the mean error
of output ``o`` is the sum over inputs of (Wq - W)[o, i] E[x_i], and leaves with the bias. At
the borders of padded convolutions the input's mean is less than measured; that is ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtbuild.graph.model import load_model, save_model
from trtbuild.graph.passes.rewiring import new_constant
from trtbuild.quantization.written import written_weights

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import numpy.typing as npt
    import onnx_ir as ir

    from trtbuild.graph import Graph

    Doubles = npt.NDArray[np.float64]

VERSION = 1
"""Part of the key of a corrected graph; raised when it starts to give other graphs."""


def inputs_to_measure(graph: Graph, nodes: Collection[str]) -> dict[str, int]:
    """Return the inputs of the layers that can be corrected, with the axis of channels."""
    found = {}
    for node in load_model(graph.path).graph:
        data = node.inputs[0] if node.name in nodes else None
        if data is not None and _bias_place(node) is not None:
            found[data.name or ""] = 1 if node.op_type == "Conv" else -1
    return found


def corrected(
    graph: Graph, original: Graph, network: Graph, means: Mapping[str, Doubles], out: Path
) -> tuple[Graph, int]:
    """Return ``graph`` with other biases, written to ``out``, and of how many layers.

    ``network`` is the Q/DQ graph of ``graph``, ``original`` what ``graph`` was before its
    weights were rounded (the same where they were not): its weights are what the outputs ought
    to have come from. ``means`` are E[x] [channels] of the tensors of
    :func:`inputs_to_measure`.
    """
    written = written_weights(network)
    wanted = {node.name: node for node in load_model(original.path).graph}
    model = load_model(graph.path)
    changed = 0
    for node in tuple(model.graph):
        data = node.inputs[0] if node.name in written else None
        place = _bias_place(node) if data is not None else None
        mean = means.get(data.name or "") if data is not None else None
        if place is None or mean is None:
            continue
        weight = _array(wanted[node.name], 1)
        error = written[node.name or ""].values - weight.astype(np.float64)
        _subtract(model.graph, place, _mean_output(node, error, mean))
        changed += 1
    return save_model(model, out), changed


def _bias_place(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Return which input of which node holds the bias of a layer, None if nothing can.

    A convolution or Gemm without a bias gets one; a MatMul needs an Add of a constant behind it
    that alone reads it.
    """
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or weight.const_value is None:
        return None
    if node.op_type == "Conv" or (node.op_type == "Gemm" and _plain(node)):
        bias = node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004  input 2
        constant = bias is None or bias.const_value is not None
        return (node, 2) if constant else None
    uses = tuple(node.outputs[0].uses())
    if node.op_type != "MatMul" or len(weight.const_value.shape) != 2 or len(uses) != 1:  # noqa: PLR2004  a matrix
        return None
    if node.outputs[0].is_graph_output() or uses[0].node.op_type != "Add":
        return None
    other = uses[0].node.inputs[1 - uses[0].idx]
    if other is None or other.const_value is None:
        return None
    outputs = weight.const_value.shape[1]
    return (uses[0].node, 1 - uses[0].idx) if other.const_value.shape == (outputs,) else None


def _plain(gemm: ir.Node) -> bool:
    factors = [gemm.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    return factors == [1.0, 1.0] and gemm.attributes.get_int("transA", 0) == 0


def _mean_output(node: ir.Node, weight: Doubles, mean: Doubles) -> Doubles:
    """Return what a layer without bias gives on average, [outputs]."""
    if node.op_type != "Conv":
        return (weight if node.attributes.get_int("transB", 0) else weight.T) @ mean
    groups = node.attributes.get_int("group", 1)
    outputs, inputs = weight.shape[:2]
    per_input = weight.reshape(groups, outputs // groups, inputs, -1).sum(axis=3)
    means = mean.reshape(groups, inputs, 1)
    return np.asarray(np.matmul(per_input, means).reshape(outputs))


def _subtract(graph: ir.Graph, place: tuple[ir.Node, int], shift: Doubles) -> None:
    node, index = place
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    bias = np.zeros(len(shift)) if old is None else _array(node, index).astype(np.float64)
    value = new_constant(graph, f"{node.name}.corrected", (bias - shift).astype(np.float32))
    node.replace_input_with(index, value)


def _array(node: ir.Node, index: int) -> npt.NDArray[np.float32]:
    value = node.inputs[index]
    if value is None or value.const_value is None:
        raise ValueError(f"input {index} of {node.name} is no constant")
    return np.asarray(value.const_value.numpy(), np.float32)
