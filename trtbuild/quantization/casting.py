"""Convert a graph to FP16 or BF16; keep in FP32 what would overflow or has no such form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from trtbuild.engine import Value
from trtbuild.graph.model import infer_shapes, load_model, save_model
from trtbuild.graph.passes.raise_opset import raise_opset
from trtbuild.quantization import formats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Literal

    from trtbuild.graph import Graph

VERSION = 4
"""Part of the key of a converted graph; raised when it starts to give other graphs."""

HALF_LIMIT = 65504.0
"""The largest finite float16 (IEEE 754 binary16)."""

_LIMITS = {"fp16": HALF_LIMIT, "bf16": float.fromhex("0x1.FEp127")}
"""The largest finite numbers; what is beyond them would become infinite."""

MARGIN = 2.0
"""Data that calibration did not see may be larger by this factor before it overflows."""

_BF16_OPSET = 22
"""The first opset whose Conv and pooling take bfloat16 (ONNX operator changelog)."""

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")

_QUANTIZER_OPSET = 19
"""The first opset whose QuantizeLinear and DequantizeLinear take low floats (changelog)."""

_TYPE_ATTRIBUTES = ("dtype", "output_dtype", "output_datatype")
"""Attributes of nodes that make values of a type that is asked for: EyeLike, windows, noise."""

_LOW_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_SCHEMA_TYPES = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}


class Kept(Value, frozen=True, kw_only=True):
    """A node that stays in FP32, and why."""

    node: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Casting:
    """How to convert a graph; ``amax`` are measured magnitudes by tensor, empty if unknown.

    ``keep_float`` are the names of nodes that stay in FP32 whatever their range, and so do
    ``wide``, which are not reported: products of quantized numbers that hand out FP32. With
    ``emulated`` the graph computes in FP32 and rounds every value that would be low, for
    runtimes that have no kernels of that type (ONNX Runtime and BF16 on a CPU).
    """

    precision: Literal["fp16", "bf16"]
    amax: Mapping[str, float]
    keep_float: frozenset[str] = frozenset()
    wide: frozenset[str] = frozenset()
    emulated: bool = False


def cast_graph(graph: Graph, casting: Casting, out: Path) -> tuple[Graph, tuple[Kept, ...]]:
    """Return ``graph`` in the wanted precision, written to ``out``, and the nodes kept in FP32.

    Inputs and outputs of the graph keep their types, and so does all that is in subgraphs.
    Constants beyond the wanted type are clamped to its largest number where a converted node
    reads them: a mask of -3.4e38 must not become infinite.

    Q/DQ pairs follow the nodes around them, as long as the wanted type has their scales. Where
    it lacks one, the pair and what reads it stay in FP32. ``emulated`` leaves values that come
    out of a pair as they are: products read the codes, and only their results are rounded.
    """
    model = load_model(graph.path)
    if casting.precision == "bf16":
        model, _ = raise_opset(model, _BF16_OPSET, _BF16_OPSET)
    elif not casting.emulated and any(node.op_type in _QUANTIZERS for node in model.graph):
        model, _ = raise_opset(model, _QUANTIZER_OPSET, _QUANTIZER_OPSET)
    writer = _Writer(model, casting)
    writer.write()
    model.graph.sort()
    for name, value in tuple(model.graph.initializers.items()):
        if not (value.uses() or value.is_graph_input() or value.is_graph_output()):
            del model.graph.initializers[name]  # all that read it read its low form now
    if not casting.emulated:
        infer_shapes(model)
    return save_model(model, out), tuple(writer.kept)


def float_tensors(graph: Graph) -> tuple[str, ...]:
    """Return the float32 inputs and tensors that nodes of the main graph make, in its order."""
    model = load_model(graph.path)
    made = (value for node in model.graph for value in node.outputs)
    return tuple(
        value.name
        for value in (*model.graph.inputs, *made)
        if value.name and _is_float(value) and (value.uses() or value.is_graph_output())
    )


class _Writer:
    def __init__(self, model: ir.Model, casting: Casting) -> None:
        self._graph = model.graph
        self._opset = model.opset_imports.get("", 1)
        self._casting = casting
        self._low = _LOW_TYPES[casting.precision]
        self._casts: dict[tuple[str, ir.DataType], ir.Value] = {}
        self.kept: list[Kept] = []

    def write(self) -> None:
        nodes = tuple(ir.traversal.RecursiveGraphIterator(self._graph))
        converted = {
            node: self._ports(node) for node in tuple(self._graph) if self._converts(node)
        }
        self._settle(converted)
        for node in reversed(tuple(self._graph)):
            if node.op_type in _QUANTIZERS and self._follows(node, converted):
                converted[node] = self._ports(node)
        lowered = {
            node.outputs[index] for node, (_, outputs) in converted.items() for index in outputs
        }
        for node in nodes:
            wanted = converted[node][0] if node in converted else frozenset()
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype == ir.DataType.FLOAT:
                    low = index in wanted
                    node.replace_input_with(index, self._as(value, low=low, made=lowered))
        self._restore_outputs(lowered)
        if not self._casting.emulated:
            for node in converted:
                if any(value in lowered for value in node.outputs):
                    _retype(node, self._low)
            for value in lowered:
                value.type = ir.TensorType(self._low)

    def _converts(self, node: ir.Node) -> bool:
        floats = [
            v for v in (*node.inputs, *node.outputs) if v and v.dtype == ir.DataType.FLOAT
        ]
        if not floats or node.op_type in _QUANTIZERS:
            return False  # a pair follows those who read it
        if node.name in self._casting.wide:
            return False
        reason = self._reason_to_keep(node, floats)
        if reason:
            self.kept.append(Kept(node=node.name or node.op_type, reason=reason))
        return not reason

    def _reason_to_keep(self, node: ir.Node, floats: list[ir.Value]) -> str:
        if node.name in self._casting.keep_float:
            return "asked for by keep_float"
        if node.domain not in ("", "ai.onnx") or _has_subgraph(node):
            return f"{node.op_type} has no {self._casting.precision} form that is known"
        if any(name in node.attributes for name in _TYPE_ATTRIBUTES):
            return f"an attribute of {node.op_type} names the type of its output"
        if not self._ports_allowed(node):
            return f"ONNX defines no {self._casting.precision} {node.op_type}"
        if all(self._has_scale(pair) for pair in _pairs(node)):
            return self._overflows(floats)
        return f"{self._casting.precision} has no number near the scale of its codes"

    def _settle(self, converted: dict[ir.Node, tuple[frozenset[int], frozenset[int]]]) -> None:
        """Keep all that read one quantized tensor in one type: kernels want equal scales.

        TensorRT-RTX 1.7 refuses FP8 products otherwise ("type mismatch between matmul operand
        scales").
        """
        pairs = [node for node in self._graph if node.op_type == "DequantizeLinear"]
        settled = False
        while not settled:
            settled = True
            for pair in pairs:
                readers = set(pair.outputs[0].consumers())
                low = [node for node in readers if node in converted]
                if 0 < len(low) < len(readers):
                    settled = False
                    for node in low:
                        del converted[node]

    def _follows(self, node: ir.Node, converted: Mapping[ir.Node, object]) -> bool:
        """Tell whether all that read a Q/DQ node are converted, and its scale can be."""
        result = node.outputs[0]
        is_free = self._has_scale(node) and not result.is_graph_output()
        return is_free and all(reader in converted for reader in result.consumers())

    def _has_scale(self, node: ir.Node) -> bool:
        """Tell whether the wanted type has the scale of a Q/DQ node, which is a constant."""
        if not self._ports_allowed(node) and not self._casting.emulated:
            return False
        scale = node.inputs[1]
        if scale is None or scale.const_value is None:
            return scale is not None and _is_pair(scale)
        return formats.is_exact(scale.const_value.numpy(), self._casting.precision)

    def _overflows(self, floats: list[ir.Value]) -> str:
        return self._overflow(floats) if self._casting.precision == "fp16" else ""

    def _overflow(self, floats: list[ir.Value]) -> str:
        for value in floats:
            magnitude = self._casting.amax.get(value.name or "", 0.0)
            if magnitude * MARGIN > HALF_LIMIT:
                return f"{value.name} reaches {magnitude:.4g}, float16 ends at {HALF_LIMIT:.0f}"
        return ""

    def _ports_allowed(self, node: ir.Node) -> bool:
        """Tell whether ONNX allows the low type on some float port and no port forbids it."""
        schema = _schema(node, self._opset)
        if schema is None:
            return False
        word = _SCHEMA_TYPES[self._casting.precision]
        allowed = {
            c.type_param_str: word in c.allowed_type_strs for c in schema.type_constraints
        }
        ports = [
            *(_formal(schema.inputs, i) for i, v in enumerate(node.inputs) if _is_float(v)),
            *(_formal(schema.outputs, i) for i, v in enumerate(node.outputs) if _is_float(v)),
        ]
        variables = [p.type_str for p in ports if p is not None and p.type_str in allowed]
        return bool(variables) and all(allowed[name] for name in variables)

    def _ports(self, node: ir.Node) -> tuple[frozenset[int], frozenset[int]]:
        """Return the float inputs and outputs that take the low type; others are float only."""
        schema = _schema(node, self._opset)
        if schema is None:
            return frozenset(), frozenset()
        variables = {c.type_param_str for c in schema.type_constraints}

        def free(formals: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> bool:
            formal = _formal(formals, index)
            return formal is not None and formal.type_str in variables

        inputs = (
            i for i, v in enumerate(node.inputs) if _is_float(v) and free(schema.inputs, i)
        )
        outputs = (
            i for i, v in enumerate(node.outputs) if _is_float(v) and free(schema.outputs, i)
        )
        return frozenset(inputs), frozenset(outputs)

    def _as(self, value: ir.Value, *, low: bool, made: set[ir.Value]) -> ir.Value:
        """Return ``value`` in the wanted type: itself, a converted constant or a cast of it."""
        if value.const_value is not None:
            return self._constant(value) if low else value
        if self._casting.emulated:
            rounds = (low or value in made) and not _is_pair(value)
            return self._rounded(value) if rounds else value
        if low == (value in made):
            return value
        return self._cast(value, self._low if low else ir.DataType.FLOAT)

    def _constant(self, value: ir.Value) -> ir.Value:
        key = (value.name or "", self._low)
        if key not in self._casts and value.const_value is not None:
            array = value.const_value.numpy()
            limit = _LIMITS[self._casting.precision]
            array = np.clip(array, -limit, limit).astype(self._low.numpy())
            if self._casting.emulated:
                array = array.astype(np.float32)
            name = f"{value.name}_{self._casting.precision}"
            converted = ir.val(name, const_value=ir.tensor(array, name=name))
            self._graph.register_initializer(converted)
            self._casts[key] = converted
        return self._casts[key]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        key = (value.name or "", dtype)
        if key not in self._casts:
            name = f"{value.name}_to_{dtype.name.lower()}"
            node = ir.node("Cast", [value], {"to": dtype.value}, name=name)
            result = node.outputs[0]
            result.name, result.shape, result.type = name, value.shape, ir.TensorType(dtype)
            self._graph.append(node)
            self._casts[key] = result
        return self._casts[key]

    def _rounded(self, value: ir.Value) -> ir.Value:
        return self._cast(self._cast(value, self._low), ir.DataType.FLOAT)

    def _restore_outputs(self, lowered: set[ir.Value]) -> None:
        outputs = self._graph.outputs
        for index, value in enumerate(tuple(outputs)):
            if value not in lowered:
                continue
            name = value.name
            value.name = f"{name}_{self._casting.precision}"
            if self._casting.emulated:
                result = self._rounded(value)
            else:
                result = self._cast(value, ir.DataType.FLOAT)
            result.name = name
            outputs[index] = result


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _is_pair(value: ir.Value) -> bool:
    """Tell whether a value comes out of a DequantizeLinear."""
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _pairs(node: ir.Node) -> list[ir.Node]:
    """Return the DequantizeLinear nodes that a node reads."""
    producers = (value.producer() for value in node.inputs if value is not None)
    return [each for each in producers if each is not None and _is_pair(each.outputs[0])]


def _has_subgraph(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _schema(node: ir.Node, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _formal(
    formals: Sequence[onnx.defs.OpSchema.FormalParameter], index: int
) -> onnx.defs.OpSchema.FormalParameter | None:
    """Return the formal parameter of a port; a variadic last one stands for all that follow."""
    if index < len(formals):
        return formals[index]
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return formals[-1] if formals and formals[-1].option == variadic else None


def _retype(node: ir.Node, low: ir.DataType) -> None:
    """Change the attributes that name the type of a node's output, which is to be low."""
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", low.value)
    if node.op_type in ("Constant", "ConstantOfShape"):
        value = node.attributes.get("value")
        array = np.zeros(1) if value is None else value.as_tensor().numpy()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array.astype(low.numpy())))
