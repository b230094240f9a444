"""The layers of a TensorRT-RTX engine, read from what its builder logs.

The engine inspector needs a GPU; the builder's one message that starts with ``Layers:`` does
not.
Names in it are not escaped, so it is read only for staged models, whose node names are plain.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from trtbuild.backends.trt_tensors import (
    WORDS,
    Facts,
    Tensor,
    covers_product,
    in_first_profile,
    layer,
)
from trtbuild.engine import Layers
from trtbuild.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtbuild.backends.staging import Node
    from trtbuild.engine import Layer

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
    r"^Name: (?:(?!, LayerType: ).)*, LayerType: "
    r"(?:cjmp|jmp|label|\w*HostToDevice|\w*DeviceToHost)\b",
    re.DOTALL,
)
"""What a loop adds: the program of an LSTM has jumps, and copies of shapes, as layers."""

_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[-\d,]*)\], "
    r"Strides: \[(?P<strides>[-\d,]*)\], "
    r"StrideOrder: \[(?P<order>[\d,]*)\], Datatype: (?P<dtype>\w+), Format: (?P<format>.*?) ?\}"
    r"(?=$|, \{)",
    re.DOTALL,
)
_IO = re.compile(r"^ Name: (.*), IOMode: ", re.MULTILINE)
_UNIT_SEPARATOR = "\x1f"

_COMPUTE_KINDS = frozenset({"correlation", "deconv", "gemm"})
_ATTENTION = "_gemm_mha"
_FULLY_CONNECTED = re.compile(r"__myl_(?:[A-Z][a-z]*)*Fc(?:[A-Z_]|$)")
"""A kernel that was generated for a product: those within a loop, as of a GRU, name no node."""


def read_layers(message: str, nodes: Mapping[str, Node]) -> Layers:
    """Return the layers in the builder's ``message``, those of the first profile only.

    ``nodes`` are the user's nodes by staged name.

    Lines without tensors (jumps of a loop, copies of a shape) compute nothing and are left out.

    Raises:
        BuildError: another line is not as expected, so that no count could be trusted.
    """
    body, _, rest = message.removeprefix(HEADER).partition("\n\nI/O Tensors:")
    interface = frozenset(match[1] for match in _IO.finditer(rest))
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
        found.append(match)
    firsts = in_first_profile((match["name"], match[0]) for match in found)
    return Layers(
        layers=tuple(
            _layer(match, nodes, interface)
            for match, first in zip(found, firsts, strict=True)
            if first
        )
    )


def _layer(match: re.Match[str], nodes: Mapping[str, Node], interface: frozenset[str]) -> Layer:
    staged = tuple(name for name in _metadata(match["metadata"]) if name in nodes)
    kind = match["type"]
    facts = Facts(
        name=match["name"],
        kind=kind,
        staged=staged,
        product=(
            kind in _COMPUTE_KINDS
            or (kind == "runtime_fusion" and _fuses_product(match["name"], staged, nodes))
            or _ATTENTION in match["name"]
        ),
        inputs=_tensors(match["inputs"]),
        constants=_tensors(match["constants"]),
        outputs=_tensors(match["outputs"]),
    )
    return layer(facts, nodes, interface)


def _fuses_product(name: str, staged: tuple[str, ...], nodes: Mapping[str, Node]) -> bool:
    return covers_product(staged, nodes) or _FULLY_CONNECTED.match(name) is not None


def _metadata(text: str) -> list[str]:
    """Return the node names in ``[ONNX Layer: NAME]`` entries, each with an optional suffix."""
    return [
        part.partition("[ONNX Layer: ")[2].rpartition("]")[0]
        for part in text.split(_UNIT_SEPARATOR)
    ]


def _tensors(text: str) -> list[Tensor]:
    found = [
        Tensor(
            name=match["name"],
            shape=tuple(int(size) for size in filter(None, match["dims"].split(","))),
            precision=WORDS.get(match["dtype"].lower(), match["dtype"].lower()),
        )
        for match in _TENSOR.finditer(text.strip())
    ]
    if len(found) != text.count("{ Name: "):
        message = f"cannot read the tensors {text[:200]!r} that the builder reports for a layer"
        raise BuildError(message)
    return found
