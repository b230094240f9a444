"""The layers of a TensorRT engine, read from what its engine inspector says (JSON).

Three notations are read. Up to 10.x ``Bindings`` names inputs and outputs, and one phrase tells
layout and type of a tensor (``Format/Datatype``: "Row major linear FP32", or just "Half" in the
layers that a ``ForeignNode`` was compiled to). 11.x has objects in ``I/O Tensors``, and layout
and type apart (migration guide, "IEngineInspector usage from 10.x to 11.x"). ``Metadata`` has
the ONNX nodes of a layer, with control characters between them.

Only staged models are read: their node names are plain, so that they are found in any text.
What is not understood is never guessed: there are no layers then, and the reason instead.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtbuild.backends.trt_tensors import (
    COMPUTE_OPERATORS,
    WORDS,
    Facts,
    Tensor,
    covers_product,
    in_first_profile,
    layer,
)
from trtbuild.engine import Layers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from trtbuild.backends.staging import Node
    from trtbuild.engine import Role

_STAGED = re.compile(r"onnx_node_\d+(?!\d)")
_METADATA = re.compile(r"\[ONNX Layer: (.*?)\]")
_FOREIGN = re.compile(r"\{ForeignNode\[")
_REFORMAT = "Reformatting CopyNode for "
_PLAIN_TYPES = r"fp32|fp16|bf16|fp8|fp4|int8|uint8|int4|int32|int64|bool"
_TYPE = re.compile(rf"\b({_PLAIN_TYPES}|{'|'.join(WORDS)})\b")

_PRODUCT_KINDS = re.compile(
    r"conv|gemm|matrix_?multiply|matmul|fullyconnected|correlation", re.IGNORECASE
)
_OTHER_KINDS = re.compile(
    r"kgen|reformat|pointwise|no_?op|constant|shuffle|scale|quantize|signal|wait|shape|reduce"
    r"|softmax|pool|slice|concat|copy|cast|gather|resize|normalization",
    re.IGNORECASE,
)
"""Kinds that compute no product, whichever nodes their metadata names beside their own."""

_MHA = "_gemm_mha"


class _UnreadError(Exception):
    """The text is not what an inspector says; why, in words that follow a colon."""


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One layer, taken from its object."""

    name: str
    kind: str
    origin: str
    metadata: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def information(trt: ModuleType, engine: Any) -> str:  # noqa: ANN401  untyped bindings
    """Return what the inspector of ``engine`` says, for the optimal shapes of profile 0.

    Without shapes TensorRT tells no types of an engine with open ones ("N/A due to dynamic
    shapes"). It takes the device memory of an execution context for that time. Empty where
    TensorRT gives no inspector.
    """
    inspector = engine.create_engine_inspector()
    if inspector is None:
        return ""
    context = engine.create_execution_context()
    if context is not None:
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            if is_input and not engine.is_shape_inference_io(name):
                context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[1])
        inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def layers_of(text: str, nodes: Mapping[str, Node]) -> Layers:
    """Return the layers in an inspector's ``text``, those of the first profile only.

    ``nodes`` are the user's nodes by staged name. Whatever cannot be read, or would give a
    table in which products are missing, gives no layers: ``unread`` says why.
    """
    try:
        found, interface = _read(text)
        firsts = in_first_profile((each.name, _names(each)) for each in found)
        kept = [each for each, first in zip(found, firsts, strict=True) if first]
        facts = _attributed(kept, nodes)
        _expect_products(facts, nodes)
        return Layers(layers=tuple(layer(each, nodes, interface) for each in facts))
    except _UnreadError as error:
        return Layers(layers=(), unread=str(error))


def _names(found: _Layer) -> str:
    tensors = (*found.inputs, *found.constants, *found.outputs)
    return "\n".join((found.name, *(tensor.name for tensor in tensors)))


def _read(text: str) -> tuple[list[_Layer], frozenset[str]]:
    try:
        # Not strict: names and metadata hold control characters, not always escaped.
        document = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise _UnreadError(f"TensorRT's engine inspector gave no JSON ({error})") from error
    layers = document.get("Layers") if isinstance(document, dict) else None
    if not isinstance(layers, list) or not layers:
        raise _UnreadError("what TensorRT's engine inspector says has no list of layers")
    if all(isinstance(each, str) for each in layers):
        raise _UnreadError("the engine holds the names of its layers alone, no details of them")
    return [_layer(each) for each in layers], _interface(document)


def _interface(document: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the engine's inputs and outputs."""
    tensors = document.get("I/O Tensors", document.get("Bindings", []))
    names = [each.get("Name") if isinstance(each, dict) else each for each in _list(tensors)]
    return frozenset(name for name in names if isinstance(name, str))


def _layer(found: object) -> _Layer:
    if not isinstance(found, dict):
        raise _UnreadError(
            f"one layer of the engine inspector is {str(found)[:60]!r}, no object"
        )
    name, kind = found.get("Name"), found.get("LayerType")
    if not (isinstance(name, str) and isinstance(kind, str)):
        raise _UnreadError(f"a layer has no name or no type: {str(found)[:100]!r}")
    weights = [_weights(found[key]) for key in ("Weights", "ConvWeights") if key in found]
    return _Layer(
        name=name,
        kind=kind,
        origin=str(found.get("Origin", "")),
        metadata=str(found.get("Metadata", "")),
        inputs=_tensors(found.get("Inputs", []), name),
        constants=(*_tensors(found.get("Constants", []), name), *weights),
        outputs=_tensors(found.get("Outputs", []), name),
    )


def _weights(found: object) -> Tensor:
    count = found.get("Count") if isinstance(found, dict) else None
    if not (isinstance(found, dict) and isinstance(count, int)):
        raise _UnreadError(
            f"weights of a layer are {str(found)[:60]!r}, not a type and a count"
        )
    return Tensor(name="", shape=(count,), precision=_type(str(found.get("Type", ""))))


def _tensors(found: object, layer_name: str) -> tuple[Tensor, ...]:
    tensors = []
    for each in _list(found):
        sizes = each.get("Dimensions", []) if isinstance(each, dict) else None
        if not isinstance(sizes, list) or not all(isinstance(size, int) for size in sizes):
            raise _UnreadError(f"a tensor of layer {layer_name[:60]!r} is {str(each)[:60]!r}")
        words = {str(key).lower(): str(value) for key, value in each.items()}
        told = words.get("datatype") or words.get("format/datatype", "")
        shape, name = tuple(map(int, sizes)), words.get("name", "")
        tensors.append(Tensor(name=name, shape=shape, precision=_type(told)))
    return tuple(tensors)


def _list(found: object) -> Sequence[Any]:
    if not isinstance(found, list):
        raise _UnreadError(f"{str(found)[:60]!r} stands where a list is expected")
    return found


def _type(told: str) -> str:
    """Return our word for the type in a phrase, empty where it tells none."""
    match = _TYPE.search(told.lower())
    return WORDS.get(match[1], match[1]) if match else ""


def _attributed(found: Sequence[_Layer], nodes: Mapping[str, Node]) -> list[Facts]:
    """Return the layers with the nodes they cover, and whether they compute products.

    A kind that is not known computes those products that no layer of a known kind does; a
    single opaque layer (``ForeignNode`` without metadata) covers all nodes that no other does.
    """
    covered = [_staged(each, nodes) for each in found]
    opaque = [
        index
        for index, each in enumerate(found)
        if _FOREIGN.match(each.name) and not _METADATA.search(each.metadata)
    ]
    if len(opaque) == 1:
        elsewhere = {n for i, names in enumerate(covered) if i != opaque[0] for n in names}
        covered[opaque[0]] = tuple(name for name in nodes if name not in elsewhere)
    known = [_PRODUCT_KINDS.search(each.kind) is not None for each in found]
    done = {
        name
        for names, is_known in zip(covered, known, strict=True)
        if is_known
        for name in names
    }
    facts = []
    for each, names, is_known in zip(found, covered, known, strict=True):
        missing = covers_product([name for name in names if name not in done], nodes)
        fused = missing and not _OTHER_KINDS.search(each.kind)
        facts.append(
            Facts(
                name=each.name,
                kind=each.kind,
                staged=names,
                product=is_known or fused or _MHA in each.name,
                inputs=each.inputs,
                constants=each.constants,
                outputs=each.outputs,
                role=_role(each),
                opaque=_FOREIGN.match(each.name) is not None,
            )
        )
    return facts


def _staged(each: _Layer, nodes: Mapping[str, Node]) -> tuple[str, ...]:
    """Return the nodes that a layer covers: its metadata's, else those in its name."""
    if each.name.startswith(_REFORMAT):
        return ()
    named = _METADATA.findall(each.metadata)
    names = named or _STAGED.findall(each.name)
    return tuple(dict.fromkeys(name for name in names if name in nodes))


def _role(each: _Layer) -> Role:
    if each.kind.lower() in {"quantize", "dequantize"} or each.origin == "QDQ":
        return "quantize"
    if each.kind.lower() == "reformat" or each.name.startswith(_REFORMAT):
        return "reformat"
    return ""


def _expect_products(facts: Sequence[Facts], nodes: Mapping[str, Node]) -> None:
    """Refuse a table without a product where the model has some: a kind was not understood."""
    wanted = sum(node.operator in COMPUTE_OPERATORS for node in nodes.values())
    if wanted and not any(each.product for each in facts):
        kinds = ", ".join(sorted({each.kind for each in facts})[:6])
        raise _UnreadError(
            f"none of its layers ({kinds}) is one of the {wanted} products of the model"
        )
