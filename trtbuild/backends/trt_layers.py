"""The layers of a TensorRT-RTX engine, read from what its builder logs.

The engine inspector needs a GPU; the builder's one message that starts with ``Layers:`` does
not.
Names in it are not escaped, so it is read only for staged models, whose node names are plain.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtbuild.engine import Layer, Layers
from trtbuild.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtbuild.backends.staging import Node

HEADER = "Layers:\n"

_LINE_START = re.compile(r"\n(?=Name: )")
_LAYER = re.compile(
    r"^Name: (?P<name>.*), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*)\], "
    r"Constants: \[(?P<constants>.*)\], Outputs: \[(?P<outputs>.*)\], "
    r"TacticName: (?P<tactic>[^,]*), StreamId: (?P<stream>\d+)"
    r"(?:, EventId: (?P<event>\d+))?, Metadata: (?P<metadata>.*)$",
    re.DOTALL,
)
_CONTROL = re.compile(
    r"^Name: [^,{\[]*, LayerType: (?:cjmp|jmp|label|\w*HostToDevice|\w*DeviceToHost)\b"
)
"""What a loop adds: the program of an LSTM has jumps, and copies of shapes, as layers."""

_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[-\d,]*)\], "
    r"Strides: \[(?P<strides>[-\d,]*)\], "
    r"StrideOrder: \[(?P<order>[\d,]*)\], Datatype: (?P<dtype>\w+), Format: (?P<format>.*?) ?\}"
    r"(?=$|, \{)",
    re.DOTALL,
)
_PROFILE = re.compile(r"_myl(\d+)_\d+$")
_STAGED = re.compile(r"onnx_node_\d+(?!\d)")
_UNIT_SEPARATOR = "\x1f"

_WORDS = {
    "Float": "fp32",
    "Half": "fp16",
    "BFloat16": "bf16",
    "Int8": "int8",
    "FP8": "fp8",
    "Int4": "int4",
    "FP4E2M1": "fp4",
    "Int32": "int32",
    "Int64": "int64",
    "Bool": "bool",
}
_EIGHT_BITS = ("int8", "fp8")
_PACKED = ("int4", "fp4")
_WIDEST_FIRST = ("fp32", "bf16", "fp16", "int64", "int32", "fp8", "int8", "int4", "fp4", "bool")

_COMPUTE_OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})
_COMPUTE_KINDS = frozenset({"correlation", "deconv", "gemm"})
_ATTENTION = "_gemm_mha"


@dataclass(frozen=True)
class _Tensor:
    elements: int
    precision: str


def read_layers(message: str, nodes: Mapping[str, Node]) -> Layers:
    """Return the layers in the builder's ``message``, those of the first profile only.

    ``nodes`` are the user's nodes by staged name.

    Lines without tensors (jumps of a loop, copies of a shape) compute nothing and are left out.

    Raises:
        BuildError: another line is not as expected, so that no count could be trusted.
    """
    body = message.removeprefix(HEADER).partition("\n\nI/O Tensors:")[0]
    found = []
    for line in _LINE_START.split(body):
        match = _LAYER.match(line)
        control = _CONTROL.match(line)
        if match is None and control is not None:
            continue
        if match is None:
            message = (
                f"cannot read the layer {line[:200]!r} that the builder reports: a tensor "
                "name with line breaks or brackets does this; rename the model's tensors"
            )
            raise BuildError(message)
        profile = _PROFILE.search(match["name"])
        if profile is None or profile[1] == "0":
            found.append(_layer(match, nodes))
    return Layers(layers=tuple(found))


def _layer(match: re.Match[str], nodes: Mapping[str, Node]) -> Layer:
    staged = [name for name in _metadata(match["metadata"]) if name in nodes]
    staged.sort(key=lambda name: nodes[name].operator not in _COMPUTE_OPERATORS)
    covers_product = bool(staged) and nodes[staged[0]].operator in _COMPUTE_OPERATORS
    compute = (
        match["type"] in _COMPUTE_KINDS
        or (match["type"] == "runtime_fusion" and covers_product)
        or _ATTENTION in match["name"]
    )
    inputs, constants = _tensors(match["inputs"]), _tensors(match["constants"])
    if compute:
        precision = _compute_precision(inputs, constants)
    else:
        precision = _widest([*inputs, *constants, *_tensors(match["outputs"])])
    stored = {tensor.precision for tensor in constants}
    name = _STAGED.sub(lambda m: nodes[m[0]].name if m[0] in nodes else m[0], match["name"])
    return Layer(
        name=name,
        kind=match["type"],
        precision=precision,
        compute=compute,
        nodes=tuple(nodes[name].name for name in dict.fromkeys(staged)),
        weights=next((word for word in _PACKED if word in stored), ""),
    )


def _metadata(text: str) -> list[str]:
    """Return the node names in ``[ONNX Layer: NAME]`` entries, each with an optional suffix."""
    return [
        part.partition("[ONNX Layer: ")[2].rpartition("]")[0]
        for part in text.split(_UNIT_SEPARATOR)
    ]


def _tensors(text: str) -> list[_Tensor]:
    found = []
    for match in _TENSOR.finditer(text.strip()):
        elements = 1
        for size in filter(None, match["dims"].split(",")):
            elements *= abs(int(size))
        word = _WORDS.get(match["dtype"], match["dtype"].lower())
        found.append(_Tensor(elements, word))
    if len(found) != text.count("{ Name: "):
        message = f"cannot read the tensors {text[:200]!r} that the builder reports for a layer"
        raise BuildError(message)
    return found


def _compute_precision(inputs: list[_Tensor], constants: list[_Tensor]) -> str:
    """Return the type that a product is computed in: the wider of its two operands.

    The operands are an input and the weight, which is the largest constant of more than one
    element, or, where both are activations, two inputs. A weight alone in Int8 is weight-only
    quantization, which computes in the activation's type. A further float input is a
    residual, and further constants are scales and biases.
    """
    quantized = [tensor for tensor in inputs if tensor.precision in _EIGHT_BITS]
    weights = [tensor for tensor in constants if tensor.elements > 1]
    if len(quantized) > 1 or not weights:
        return _widest((quantized if len(quantized) > 1 else inputs)[:2])
    weight = max(weights, key=lambda tensor: tensor.elements)
    return _widest([*(quantized or inputs)[:1], weight])


def _widest(tensors: list[_Tensor]) -> str:
    present = {tensor.precision for tensor in tensors}
    known = [word for word in _WIDEST_FIRST if word in present]
    return known[0] if known else next(iter(sorted(present)), "none")
