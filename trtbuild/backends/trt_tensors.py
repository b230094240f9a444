"""What the tensors of a layer tell of it: its precision, and whether it only converts.

Shared by the log of TensorRT-RTX's builder and the engine inspector of TensorRT, which name
the same facts in two notations.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtbuild.engine import Layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from trtbuild.backends.staging import Node
    from trtbuild.engine import Role

UNKNOWN = "unknown"
"""The precision of a compute layer whose operands have no type in what the library tells."""

WORDS: Mapping[str, str] = {
    "float": "fp32",
    "half": "fp16",
    "bfloat16": "bf16",
    "fp4e2m1": "fp4",
}
"""Our words for TensorRT's, in small letters; all others (``int8``, ``fp8``) are the same."""

COMPUTE_OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_CONVERTERS = _QUANTIZERS | {"Cast"}
_STAGED = re.compile(r"onnx_node_\d+(?!\d)")
_MOVES = re.compile(r"__myl_(?:Move|Tran|Cast|Repl|Copy|Resh)+_myl")
"""A generated kernel that moves and casts only; of no node's own, it is the builder's work."""

_OTHER_PROFILE = re.compile(r"\[profile [1-9]\d*\]")
_SEGMENT = re.compile(r"_myl(\d+)_\d+$")

_EIGHT_BITS = ("int8", "fp8")
_PACKED = ("int4", "fp4")
_WIDEST_FIRST = ("fp32", "bf16", "fp16", "int64", "int32", "fp8", "int8", "int4", "fp4", "bool")
_BITS: Mapping[str, int] = {
    "fp32": 32,
    "bf16": 16,
    "fp16": 16,
    "int64": 64,
    "int32": 32,
    "fp8": 8,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
    "int4": 4,
    "fp4": 4,
}


@dataclass(frozen=True)
class Tensor:
    """One operand: its name, its sizes (negative where open) and its type, or none."""

    name: str
    shape: tuple[int, ...]
    precision: str

    @property
    def elements(self) -> int:
        """The number of elements; an open axis counts as its negative size says, 1."""
        return math.prod(map(abs, self.shape))

    @property
    def bytes(self) -> int | None:
        """Its size, ``None`` where a size or the type is not known."""
        if self.precision not in _BITS or any(size < 0 for size in self.shape):
            return None
        return self.elements * _BITS[self.precision] // 8


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One layer as the library describes it, under the ``name`` that it has in the engine.

    ``staged`` are the staged names of nodes that it covers. ``product`` tells whether it
    multiplies and accumulates; ``role`` is what its kind alone says, if anything. ``opaque``
    layers have operands inside that nobody tells of.
    """

    name: str
    kind: str
    staged: tuple[str, ...]
    product: bool
    inputs: Sequence[Tensor]
    constants: Sequence[Tensor]
    outputs: Sequence[Tensor]
    role: Role = ""
    opaque: bool = False


def layer(facts: Facts, nodes: Mapping[str, Node], interface: frozenset[str]) -> Layer:
    """Return the layer of ``facts``; ``interface`` has the names of the engine's own tensors.

    What converts an input or output of the engine has no role: its type is the caller's wish.
    """
    ordered = sorted(
        dict.fromkeys(facts.staged),
        key=lambda name: nodes[name].operator not in COMPUTE_OPERATORS,
    )
    everything = (*facts.inputs, *facts.constants, *facts.outputs)
    stored = {tensor.precision for tensor in facts.constants}
    role = "" if facts.product else facts.role or _role(facts, nodes)
    if any(tensor.name in interface for tensor in (*facts.inputs, *facts.outputs)):
        role = ""
    read = facts.inputs or facts.constants
    sizes = [tensor.bytes for tensor in (*read, *facts.outputs)]
    known = [size for size in sizes if size is not None]
    return Layer(
        name=_STAGED.sub(lambda m: nodes[m[0]].name if m[0] in nodes else m[0], facts.name),
        kind=facts.kind,
        precision=_computed_in(facts) if facts.product else widest(everything),
        compute=facts.product,
        nodes=tuple(nodes[name].name for name in ordered),
        weights=next((word for word in _PACKED if word in stored), ""),
        role=role,
        reads=_largest(read) if role else "",
        writes=_largest(facts.outputs) if role else "",
        engine_name=facts.name,
        moved_bytes=sum(known) if role and len(known) == len(sizes) else None,
    )


def in_first_profile(told: Iterable[tuple[str, str]]) -> Iterator[bool]:
    """Tell of each layer, in the engine's order, whether it is of the first profile.

    ``told`` has the name of each and everything that names it or its tensors. An engine holds
    its layers once for every profile, one profile after the other, with a mark on the names of
    layers and tensors from the second on. What Myelin generates has no mark, but the number of
    its segment, which runs through the whole engine: with one profile too it can start at 1,
    behind the copy of a shape, and leave numbers out (seen in TensorRT-RTX 1.7, GRU).
    """
    layers = [
        (_SEGMENT.search(name), _OTHER_PROFILE.search(text) is not None) for name, text in told
    ]
    marked = [int(segment[1]) for segment, mark in layers if segment and mark]
    end = min(marked, default=None)
    for segment, mark in layers:
        yield not mark and (segment is None or end is None or int(segment[1]) < end)


def covers_product(staged: Iterable[str], nodes: Mapping[str, Node]) -> bool:
    """Tell whether one of the staged nodes is a convolution or a matrix product."""
    return any(nodes[name].operator in COMPUTE_OPERATORS for name in staged)


def widest(tensors: Iterable[Tensor]) -> str:
    """Return the widest type of ``tensors``, ``none`` where no type is told."""
    present = {tensor.precision for tensor in tensors if tensor.precision}
    known = [word for word in _WIDEST_FIRST if word in present]
    return known[0] if known else next(iter(sorted(present)), "none")


def _largest(tensors: Sequence[Tensor]) -> str:
    """Return the type of the largest tensor: scales and biases are small beside the data."""
    largest = max(tensors, key=lambda tensor: tensor.elements, default=None)
    return (largest.precision or UNKNOWN) if largest is not None else "none"


def _role(facts: Facts, nodes: Mapping[str, Node]) -> Role:
    operators = {nodes[name].operator for name in facts.staged}
    if operators & _QUANTIZERS and operators <= _CONVERTERS:
        return "quantize"
    return "reformat" if _MOVES.match(facts.name) and operators <= {"Cast"} else ""


def _computed_in(facts: Facts) -> str:
    """Return the type that a product is computed in: the wider of its two operands.

    The operands are an input and the weight, which is the largest constant of more than one
    element, or, where both are activations, two inputs. A weight alone in Int8 is weight-only
    quantization, which computes in the activation's type. A further float input is a
    residual, and further constants are scales and biases.
    """
    quantized = [tensor for tensor in facts.inputs if tensor.precision in _EIGHT_BITS]
    weights = [tensor for tensor in facts.constants if tensor.elements > 1]
    if len(quantized) > 1 or not weights:
        operands = (quantized if len(quantized) > 1 else list(facts.inputs))[:2]
    else:
        weight = max(weights, key=lambda tensor: tensor.elements)
        operands = [*(quantized or facts.inputs)[:1], weight]
    if facts.opaque or not operands or any(not tensor.precision for tensor in operands):
        return UNKNOWN
    return widest(operands)
