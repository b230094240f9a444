"""Evaluate every quantizable node a second time in one graph, quantized, and sum the noise.

One pass over data then tells of all nodes at once how much noise each makes at its own output
when its input and weight alone are rounded. What of that noise arrives at the model's outputs
it cannot tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from trtbuild.graph.model import load_model, save_model
from trtbuild.quantization.placement import Placement

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.graph import Graph

_SUFFIX = "__quantized"
NOISE = "__noise"
SIGNAL = "__signal"


def doubled(graph: Graph, placement: Placement, out: Path) -> tuple[Graph, Placement]:
    """Return ``graph`` with a double of each quantizable node, and the placement of doubles.

    The outputs are two scalars per node, called ``NODE__noise`` and ``NODE__signal``: the sum
    of squares of the difference between node and double, and of the node's own output. They are
    zero and equal until the doubles are quantized by the placement, which rounds nothing else.
    """
    model = load_model(graph.path)
    nodes: dict[str, int] = {}
    tensors: dict[str, None] = {}
    model.graph.outputs.clear()
    for node in list(model.graph):
        weight = placement.nodes.get(node.name or "", -1)
        if weight == -1:
            continue
        double = _double(node)
        model.graph.append(double)
        nodes[double.name or ""] = weight
        tensors[_name(node.inputs[1 - weight])] = None
        difference = ir.node("Sub", [node.outputs[0], double.outputs[0]])
        model.graph.append(difference)
        sums = ((NOISE, difference.outputs[0]), (SIGNAL, node.outputs[0]))
        for suffix, value in sums:
            total = ir.node("ReduceSumSquare", [value], {"keepdims": 0})
            total.name = total.outputs[0].name = f"{node.name}{suffix}"
            total.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            total.outputs[0].shape = ir.Shape(())
            model.graph.append(total)
            model.graph.outputs.append(total.outputs[0])
        difference.name = difference.outputs[0].name = f"{node.name}__difference"
    model.graph.sort()
    roots = {name: placement.linked.get(name, name) for name in tensors}
    order = dict.fromkeys((*roots.values(), *tensors))
    return save_model(model, out), Placement(
        nodes=nodes,
        tensors=tuple(order),
        linked={name: root for name, root in roots.items() if name != root},
        absorbed={},
        whole=frozenset(),
    )


def _double(node: ir.Node) -> ir.Node:
    double = ir.Node(
        node.domain,
        node.op_type,
        list(node.inputs),
        attributes=list(node.attributes.values()),
        num_outputs=len(node.outputs),
        name=f"{node.name}{_SUFFIX}",
    )
    for value, twin in zip(node.outputs, double.outputs, strict=True):
        twin.name, twin.type, twin.shape = f"{value.name}{_SUFFIX}", value.type, value.shape
    return double


def _name(value: ir.Value | None) -> str:
    if value is None or not value.name:
        raise ValueError("a quantizable node has no input")
    return value.name
