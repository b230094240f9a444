"""Small ONNX models of many kinds, and ways to break them: bytes and parts of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, parser

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

SIZES = (0, -1, -5, 1, 2, 3, 127, 1 << 16, 1 << 31, (1 << 31) - 1, (1 << 63) - 1, -(1 << 63))
WORDS = ("", "x", "y", "w", "a", "A" * 300, "é", "a/b", "../x", "\n", "[*]", "Conv", "ai.onnx")
OPERATORS = (
    *(
        "Add",
        "Cast",
        "Concat",
        "Conv",
        "Div",
        "Expand",
        "Gather",
        "Gemm",
        "GRU",
        "Identity",
        "If",
    ),
    *("Loop", "MatMul", "Mod", "NonZero", "OneHot", "Pad", "QLinearConv", "QuantizeLinear"),
    *("Range", "Reshape", "Resize", "RoiAlign", "Shape", "Slice", "Softmax", "Split", "Tile"),
    *("TopK", "Transpose", "Where", "NoSuchOperator"),
)

_HEAD = '<ir_version: 8, opset_import: ["" : 17]>\nm '
TEXTS = (
    "(float[N, 4] x) => (float[N, 4] y) <float[4, 4] w> { a = MatMul(x, w)\n y = Relu(a) }",
    """(float[N, 2, 6, 6] x) => (float[N, 3] y)
    <float[2, 2, 3, 3] k, float[2] b, float[2, 3] w, float[3] c> {
    a = Conv<pads = [1, 1, 1, 1]>(x, k, b)
    r = Relu(a)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm(f, w, c) }""",
    """(float[5, 1, 3] x) => (float[5, 1, 1, 2] y)
    <float[1, 6, 3] w, float[1, 6, 2] r> { y, h = GRU<hidden_size = 2>(x, w, r) }""",
    """(float[N, 3] x) => (float[N, 3] y) <bool c = {1}> {
    y = If (c) <then_branch = t () => (float[N, 3] o) { o = Relu(x) },
                else_branch = e () => (float[N, 3] o) { o = Neg(x) }> }""",
    """(float[N, 3] x) => (float[N, 3] y) <int64 n = {3}, bool c = {1}> {
    y = Loop (n, c, x) <body = b (int64 i, bool g, float[N, 3] s)
        => (bool k, float[N, 3] t) { k = Identity(g)\n t = Add(s, s) }> }""",
    """(float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y)
    <float s = {0.05}, int8 z = {0}, int8[2, 2, 1, 1] k,
     float[2] t = {0.1, 0.2}, int8[2] u = {0, 0}> {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    w = DequantizeLinear<axis = 0>(k, t, u)
    y = Conv(d, w) }""",
    """(float[N, 4, 6] x, int64[N] i) => (float[M, 12] y)
    <int64[2] s = {-1, 12}, int64 g = {1}, int64[1] a = {0}, int64[1] e = {4}> {
    h = Shape(x)
    c = Slice(x, a, e)
    j = Concat<axis = 0>(c, x)
    k = Gather(h, g)
    y = Reshape(j, s) }""",
    """(float[N, 8] x) => (float[N, 2] v, int64[N, 2] i) <int64[1] k = {2}, int64 t = {7}> {
    m = Mod(t, t)
    s = Softmax(x)
    v, i = TopK(s, k) }""",
)


def seeds(folder: Path) -> list[onnx.ModelProto]:
    """Return the models; the last keeps a weight in a file beside it, in ``folder``."""
    draw = np.random.default_rng(0)
    models = [_filled(parser.parse_model(_HEAD + text), draw) for text in TEXTS]
    outside = _filled(parser.parse_model(_HEAD + TEXTS[0]), draw)
    (folder / "w.bin").write_bytes(outside.graph.initializer[0].raw_data)
    weight = outside.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", "64")):
        weight.external_data.add(key=key, value=value)
    return [*models, outside]


def _filled(model: onnx.ModelProto, draw: np.random.Generator) -> onnx.ModelProto:
    """Return the model with values for the weights that its text only declares."""
    for info in model.graph.value_info:
        kind = info.type.tensor_type
        shape = [each.dim_value for each in kind.shape.dim]
        values = draw.standard_normal(shape) * 3
        array = values.astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    del model.graph.value_info[:]
    return model


def mutated(models: list[onnx.ModelProto], draw: random.Random) -> bytes:
    """Return a model of which bytes, or parts of the graph, or both, are changed."""
    model = onnx.ModelProto()
    model.CopyFrom(draw.choice(models))
    way = draw.choices(("graph", "bytes", "both"), (6, 2, 1))[0]
    if way != "bytes":
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            draw.choice(CHANGES)(model, draw)
    data = model.SerializeToString()
    return data if way == "graph" else _bytes_changed(data, draw)


def _bytes_changed(data: bytes, draw: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        at = draw.randrange(len(out))
        what = draw.choice((0, 0, 0, 1, 1, 2, 3, 4, 5))
        if what == 0:
            out[at] ^= 1 << draw.randrange(8)
        elif what == 1:
            out[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif what == 2:
            del out[at : at + draw.randrange(1, 32)]
        elif what == 3:
            out[at:at] = out[at : at + draw.randrange(1, 64)]
        elif what == 4:
            out[at:at] = b"\xff" * 9 + b"\x01"
        else:
            del out[max(at, 1) :]
        if not out:
            out = bytearray(b"\0")
    return bytes(out)


def _node(model: onnx.ModelProto, draw: random.Random) -> onnx.NodeProto:
    nodes: list[onnx.NodeProto] = [*model.graph.node]
    return draw.choice(nodes) if nodes else model.graph.node.add()


def _operator(model: onnx.ModelProto, draw: random.Random) -> None:
    _node(model, draw).op_type = draw.choice(OPERATORS)


def _input(model: onnx.ModelProto, draw: random.Random) -> None:
    node = _node(model, draw)
    names = [*node.input, *(each.name for each in model.graph.initializer), *WORDS]
    if node.input and draw.randrange(3):
        node.input[draw.randrange(len(node.input))] = draw.choice(names)
    elif node.input and draw.randrange(2):
        del node.input[draw.randrange(len(node.input))]
    else:
        node.input.append(draw.choice(names))


def _output(model: onnx.ModelProto, draw: random.Random) -> None:
    node = _node(model, draw)
    names = [*(name for each in model.graph.node for name in each.output), *WORDS]
    if node.output and draw.randrange(3):
        node.output[draw.randrange(len(node.output))] = draw.choice(names)
    else:
        node.output.append(draw.choice(names))


def _name(model: onnx.ModelProto, draw: random.Random) -> None:
    target = draw.choice((model.graph, _node(model, draw), *model.graph.initializer))
    target.name = draw.choice(WORDS)


def _attribute(model: onnx.ModelProto, draw: random.Random) -> None:
    node = _node(model, draw)
    names = (
        "axis",
        "axes",
        "pads",
        "strides",
        "group",
        "hidden_size",
        "to",
        "perm",
        "kernel_shape",
    )
    value = draw.choice((draw.choice(SIZES), [draw.choice(SIZES) for _ in range(3)], 0.5, "é"))
    if node.attribute and draw.randrange(2):
        del node.attribute[draw.randrange(len(node.attribute))]
    node.attribute.append(onnx.helper.make_attribute(draw.choice(names), value))


def _dimension(model: onnx.ModelProto, draw: random.Random) -> None:
    weights = [each for each in model.graph.initializer if each.dims]
    if weights and draw.randrange(2):
        weight = draw.choice(weights)
        weight.dims[draw.randrange(len(weight.dims))] = draw.choice(SIZES)
        return
    values = [*model.graph.input, *model.graph.output]
    dims = draw.choice(values).type.tensor_type.shape.dim if values else []
    if dims:
        dims[draw.randrange(len(dims))].dim_value = draw.choice(SIZES)


def _type(model: onnx.ModelProto, draw: random.Random) -> None:
    values = [*model.graph.input, *model.graph.output]
    if model.graph.initializer and draw.randrange(2):
        draw.choice(model.graph.initializer).data_type = draw.randrange(26)
    elif values:
        draw.choice(values).type.tensor_type.elem_type = draw.randrange(26)


def _values(model: onnx.ModelProto, draw: random.Random) -> None:
    if model.graph.initializer:
        weight = draw.choice(model.graph.initializer)
        size = len(weight.raw_data)
        weight.raw_data = draw.choice((b"", b"\xff" * size, b"\0" * size, b"\x7f" * (size + 4)))


def _outside(model: onnx.ModelProto, draw: random.Random) -> None:
    if model.graph.initializer:
        weight = draw.choice(model.graph.initializer)
        weight.data_location = TensorProto.EXTERNAL
        places = ("w.bin", "../w.bin", "/etc/passwd", "/dev/zero", ".", "", "m.onnx")
        weight.external_data.add(key="location", value=draw.choice(places))
        weight.external_data.add(key="length", value=str(draw.choice(SIZES)))


def _opset(model: onnx.ModelProto, draw: random.Random) -> None:
    if draw.randrange(2) and model.opset_import:
        model.opset_import[0].version = draw.choice(
            (0, 1, 6, 11, 21, 23, 99, -1, (1 << 63) - 1)
        )
    else:
        model.opset_import.add(domain=draw.choice(WORDS), version=draw.choice((1, 17)))


def _order(model: onnx.ModelProto, draw: random.Random) -> None:
    nodes = [*model.graph.node, *(model.graph.node[: draw.randrange(2)])]
    draw.shuffle(nodes)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _ends(model: onnx.ModelProto, draw: random.Random) -> None:
    ends = draw.choice((model.graph.input, model.graph.output))
    if ends and draw.randrange(2):
        del ends[draw.randrange(len(ends))]
    elif ends:
        ends.append(ends[0])


def _deep(model: onnx.ModelProto, draw: random.Random) -> None:
    tail = model.graph.output[0].name if model.graph.output else "y"
    for at in range(draw.choice((100, 300, 1000))):
        model.graph.node.add(op_type="Relu", input=[tail], output=[f"deep{at}"])
        tail = f"deep{at}"
    if model.graph.output:
        model.graph.output[0].name = tail


def _function(model: onnx.ModelProto, draw: random.Random) -> None:
    """Add a model-local function, which may call itself."""
    node = _node(model, draw)
    inner = onnx.helper.make_node(node.op_type or "Relu", ["p"], ["q"], domain="own")
    model.functions.append(
        onnx.helper.make_function(
            "own", node.op_type or "Relu", ["p"], ["q"], [inner], list(model.opset_import)
        )
    )
    node.domain = "own"
    model.opset_import.add(domain="own", version=1)


CHANGES: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    *(_operator, _input, _output, _name, _attribute, _dimension, _type, _values),
    *(_outside, _opset, _order, _ends, _deep, _function),
)
