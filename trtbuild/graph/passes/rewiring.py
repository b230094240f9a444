"""What folding passes do to a graph in the end: drop a node, add a constant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def can_replace(source: ir.Value, result: ir.Value) -> bool:
    """Tell whether ``source`` can stand for ``result`` everywhere.

    An output of the graph keeps its name, so its substitute must be free to take that name:
    made by a node of the same graph, and not an output itself.
    """
    if not result.is_graph_output():
        return True
    producer = source.producer()
    return (
        producer is not None and producer.graph is result.graph and not source.is_graph_output()
    )


def replace_node(node: ir.Node, source: ir.Value) -> None:
    """Remove ``node``; ``source``, which :func:`can_replace` it, stands for its output."""
    result, graph = node.outputs[0], node.graph
    if graph is None:
        raise ValueError(f"{node.name} is in no graph")
    renamed = result.name if result.is_graph_output() else None
    if source.shape is None:
        source.shape = result.shape
    if source.type is None:
        source.type = result.type
    result.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if renamed is not None:
        source.name = renamed


def absorb_node(node: ir.Node, source: ir.Value) -> None:
    """Remove ``node``, whose work the node before it does now; ``source`` takes its name.

    So a name stands for the same values before and after: what was measured of a tensor of the
    user's graph (a TensorRT calibration cache, for example) holds for ours of that name.
    """
    name = node.outputs[0].name
    replace_node(node, source)
    source.name = name


def new_constant(graph: ir.Graph, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    """Add an initializer called ``name``, or ``name_1`` and so on where that is taken."""
    free, number = name, 0
    while free in graph.initializers:
        number += 1
        free = f"{name}_{number}"
    value = ir.val(free, const_value=ir.tensor(array, name=free))
    graph.register_initializer(value)
    return value
