"""Files: what reading, digests and saving promise."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.graph import models
from trtbuild.errors import SourceError, TrtbuildError
from trtbuild.graph.model import files_of, load_model, node_names, read_graph, save_model
from trtbuild.graph.optimize import optimize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LINEAR = "linear (float[N, 64] x) => (float[N, 32] y) { m = MatMul(x, w) y = Add(m, b) }"
WEIGHTS = {"w": models.normal(64, 32), "b": models.normal(32, seed=1)}

BRANCHES = """branches (bool c, float[4] x) => (float[4] y) {
    y = If (c) <
        then_branch = g1 () => (float[4] t) { t = Add(x, k) },
        else_branch = g2 () => (float[4] e)
            <float[4] inner = {1, 2, 3, 4}> { e = Mul(x, inner) }
    >
}"""


def linear() -> onnx.ModelProto:
    return models.proto(LINEAR, WEIGHTS)


def saved(model: onnx.ModelProto, path: Path) -> str:
    onnx.save(model, path)
    return read_graph(path).sha256


def test_a_graph_has_the_typed_inputs_and_outputs_of_its_file(tmp_path: Path) -> None:
    text = "g (float[N, 2] x, int64[3] i, bfloat16[?] h) => (float[N, 2] y, float16 z) {"
    graph = models.write(
        tmp_path / "m.onnx",
        text + " y = Add(x, w) s = ReduceSum<keepdims = 0>(x) z = Cast<to = 10>(s) }",
        {"w": models.normal(2)},
    )
    assert [(s.name, s.dtype, s.shape) for s in graph.inputs] == [
        ("x", "float32", ("N", 2)),
        ("i", "int64", (3,)),
        ("h", "bfloat16", ("?",)),
    ]
    assert [(s.name, s.dtype, s.shape) for s in graph.outputs] == [
        ("y", "float32", ("N", 2)),
        ("z", "float16", ()),
    ]


def test_weights_of_old_files_are_no_inputs(tmp_path: Path) -> None:
    model = models.proto(LINEAR, WEIGHTS, opset=9, ir_version=3)
    for name, array in WEIGHTS.items():
        kind = helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        model.graph.input.append(kind)
    saved(model, tmp_path / "m.onnx")
    assert [spec.name for spec in read_graph(tmp_path / "m.onnx").inputs] == ["x"]


def test_equal_content_has_one_digest_wherever_it_lies_and_whoever_wrote_it(
    tmp_path: Path,
) -> None:
    expected = saved(linear(), tmp_path / "plain.onnx")
    (tmp_path / "elsewhere").mkdir()
    assert saved(linear(), tmp_path / "elsewhere" / "other.onnx") == expected

    external = tmp_path / "external.onnx"
    onnx.save(linear(), external, save_as_external_data=True, location="w", size_threshold=0)
    assert read_graph(external).sha256 == expected

    described = linear()
    described.producer_name, described.producer_version = "somebody", "1.2"
    described.doc_string, described.graph.doc_string = "about", "the graph"
    described.graph.node[0].doc_string = "the node"
    described.graph.initializer[0].doc_string = "the weight"
    described.graph.node[0].metadata_props.add(key="line", value="7")
    described.metadata_props.add(key="author", value="somebody")
    assert saved(described, tmp_path / "described.onnx") == expected

    inferred = onnx.shape_inference.infer_shapes(linear())
    assert inferred.graph.value_info
    assert saved(inferred, tmp_path / "inferred.onnx") == expected


def rename_node(model: onnx.ModelProto) -> None:
    model.graph.node[1].name = "other"


def flip_one_bit(model: onnx.ModelProto) -> None:
    data = bytearray(model.graph.initializer[0].raw_data)
    data[-1] ^= 1
    model.graph.initializer[0].raw_data = bytes(data)


def reshape_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].dims[:] = [1, 32]


def add_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("alpha", 2.0))


def rename_axis(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "M"


def retype_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].data_type = TensorProto.INT32


def raise_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 18


@pytest.mark.parametrize(
    "change",
    [
        rename_node,
        flip_one_bit,
        reshape_weight,
        add_attribute,
        rename_axis,
        retype_weight,
        raise_opset,
    ],
)
def test_any_change_of_content_changes_the_digest(
    change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    changed = linear()
    change(changed)
    assert saved(changed, tmp_path / "b.onnx") != saved(linear(), tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        (TensorProto.FLOAT, "float_data", [1.5, -2.0, 0.0, 3.0]),
        (TensorProto.FLOAT16, "int32_data", [0x3C00, 0x4000, 0, 0xBC00]),
        (TensorProto.BFLOAT16, "int32_data", [0x3F80, 0x4000, 0, 0xBF80]),
        (TensorProto.INT8, "int32_data", [1, -2, 0, 127]),
        (TensorProto.INT4, "int32_data", [0x21, 0xF7]),
        (TensorProto.INT64, "int64_data", [1, -2, 0, 1 << 40]),
        (TensorProto.DOUBLE, "double_data", [1.5, -2.0, 0.0, 3.0]),
        (TensorProto.UINT32, "uint64_data", [1, 2, 0, 3]),
        (TensorProto.BOOL, "int32_data", [1, 0, 0, 1]),
    ],
)
def test_typed_and_raw_data_of_equal_content_have_one_digest(
    kind: int, field: str, values: list[float], tmp_path: Path
) -> None:
    typed = TensorProto(name="t", data_type=kind, dims=[4])
    getattr(typed, field).extend(values)
    raw = TensorProto(name="t", data_type=kind, dims=[4])
    raw.raw_data = ir.serde.deserialize_tensor(typed).tobytes()
    digests = set()
    for tensor in (typed, raw):
        model = linear()
        model.graph.initializer.append(tensor)
        digests.add(saved(model, tmp_path / "m.onnx"))
    assert len(digests) == 1


def test_weights_in_subgraphs_attributes_and_functions_count(tmp_path: Path) -> None:
    def branches(inner: float) -> onnx.ModelProto:
        model = models.proto(BRANCHES, {"k": models.normal(4)})
        tensor = model.graph.node[0].attribute[1].g.initializer[0]
        tensor.CopyFrom(numpy_helper.from_array(np.full(4, inner, np.float32), tensor.name))
        return model

    def function(value: float) -> onnx.ModelProto:
        constant = numpy_helper.from_array(np.full(1, value, np.float32))
        nodes = [
            helper.make_node("Constant", [], ["c"], value=constant),
            helper.make_node("Add", ["a", "c"], ["r"]),
        ]
        opsets = [helper.make_opsetid("", 17)]
        model = linear()
        model.opset_import.append(helper.make_opsetid("own", 1))
        model.functions.append(
            helper.make_function("own", "Shift", ["a"], ["r"], nodes, opsets)
        )
        return model

    for make in (branches, function):
        assert saved(typed(make(1.0)), tmp_path / "t.onnx") == saved(
            make(1.0), tmp_path / "r.onnx"
        )
        first, again, other = (
            saved(make(value), tmp_path / "m.onnx") for value in (1.0, 1.0, 1.5)
        )
        assert first == again != other


def typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the same numbers in typed fields."""
    tensors = [a.t for f in model.functions for n in f.node for a in n.attribute]
    tensors += [t for n in model.graph.node for a in n.attribute for t in a.g.initializer]
    for tensor in tensors:
        values = numpy_helper.to_array(tensor).tolist()
        tensor.ClearField("raw_data")
        tensor.float_data.extend(values)
    assert tensors
    return model


def break_length(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def break_typed_length(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].float_data.extend([1.0, 2.0, 3.0])


def break_element_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def break_dimension(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -64


def break_typed_type(model: onnx.ModelProto) -> None:
    """Let the numbers stand where those of another type belong; onnx-ir asserts on it."""
    break_typed_length(model)
    model.graph.initializer[0].data_type = TensorProto.COMPLEX64
    model.graph.initializer[0].int32_data.append(1)
    model.graph.initializer[0].ClearField("float_data")


def break_input_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 99


@pytest.mark.parametrize(
    "damage",
    [
        break_length,
        break_typed_length,
        break_typed_type,
        break_element_type,
        break_dimension,
        break_input_type,
    ],
)
def test_a_tensor_that_contradicts_itself_is_refused_by_name(
    damage: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    model = linear()
    damage(model)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match=r"'[wx]'"):
        read_graph(path)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"location": "../w.bin"}, "outside"),
        ({"location": "link.bin"}, "outside"),
        ({"location": "circle.bin"}, "outside|symbolic links"),  # Python 3.13 resolves circles
        ({"location": "a\0b"}, "outside"),
        ({"location": ""}, "outside"),
        ({"location": "/etc/hostname"}, "outside"),
        ({"location": "missing.bin"}, "No such file"),
        ({"location": "."}, "outside|directory"),
        ({"location": "w.bin", "offset": "x"}, "no number"),
        ({"location": "w.bin", "offset": "-4"}, "-4"),
        ({"location": "w.bin", "length": "12"}, "12 bytes"),
        ({"location": "short.bin"}, "has 100"),
    ],
)
def test_external_data_that_cannot_be_trusted_is_refused(
    entries: dict[str, str], reason: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    outside = tmp_path / "w.bin"
    for path in (outside, folder / "w.bin"):
        path.write_bytes(WEIGHTS["w"].tobytes())
    (folder / "short.bin").write_bytes(bytes(100))
    (folder / "link.bin").symlink_to(outside)
    (folder / "circle.bin").symlink_to(folder / "circle.bin")
    model = linear()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match=reason):
        read_graph(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello world", bytes(100), b"\xff" * 40], ids=["empty", "text", "0", "ff"]
)
def test_what_is_no_model_is_a_source_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    for read in (read_graph, load_model, files_of):
        with pytest.raises(SourceError, match=r"m\.onnx: "):
            read(path)
    for missing in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(SourceError, match="cannot read"):
            read_graph(missing)


def test_damaged_files_never_end_in_a_traceback(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    model = models.proto(LINEAR, {"w": models.normal(64, 32)[:, :4], "b": models.normal(4)})
    whole = model.SerializeToString()
    path = tmp_path / "m.onnx"
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            # Most of the file is weights; names and structure are what breaks.
            damaged[place % 64 - 32 * int(place % 2)] = random.integers(0, 256)
        path.write_bytes(bytes(damaged[: random.integers(len(whole) // 2, len(whole) + 1)]))
        try:
            optimize(read_graph(path), tmp_path / "out.onnx")
        except TrtbuildError:
            refused += 1
    assert refused > 30


def test_a_model_with_external_data_can_be_saved_in_another_folder(tmp_path: Path) -> None:
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
    source, copy = tmp_path / "from" / "m.onnx", tmp_path / "to" / "m.onnx"
    onnx.save(linear(), source, save_as_external_data=True, location="w", size_threshold=0)
    graph = save_model(load_model(source), copy)
    onnx.save(linear(), tmp_path / "inline.onnx")
    inline = save_model(load_model(tmp_path / "inline.onnx"), tmp_path / "again.onnx")
    assert graph.sha256 == inline.sha256
    assert files_of(copy) == (copy,)
    assert files_of(source) == (source, source.parent / "w")
    x = models.normal(3, 64, seed=2)
    np.testing.assert_array_equal(models.run(copy, {"x": x})["y"], _expected(x))


def _expected(x: models.Array) -> models.Array:
    return np.asarray(x @ WEIGHTS["w"] + WEIGHTS["b"])


@pytest.mark.slow
def test_weights_beyond_a_gibibyte_stay_outside_and_are_never_all_in_memory(
    tmp_path: Path,
) -> None:
    """A sparse file of 2.2 GB: protobuf could not hold it, a page of it is real."""
    rows, columns = 550_000, 1000
    model = models.proto(
        "g (float[N, 8] x) => (float[N, 8] y) "
        "{ r = Gather(w, i) s = ReduceSum(r) y = Add(x, s) }",
        {"i": np.array([1], np.int64)},
    )
    weight = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT)
    weight.dims[:] = [rows, columns]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w.bin")
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with (tmp_path / "w.bin").open("wb") as file:
        os.truncate(file.fileno(), rows * columns * 4)
        file.seek(columns * 4)
        file.write(struct.pack("<f", 1.5))
    assert files_of(path) == (path, tmp_path / "w.bin")
    assert read_graph(path).inputs[0].shape == ("N", 8)
    loaded = load_model(path).graph.initializers["w"].const_value
    assert loaded is not None
    assert loaded.nbytes == rows * columns * 4
    x = np.zeros((1, 8), np.float32)
    np.testing.assert_array_equal(models.run(path, {"x": x})["y"], x + 1.5)


def test_every_node_gets_a_name_of_its_own_and_keeps_a_good_one(tmp_path: Path) -> None:
    model = models.proto(
        "g (float[2] x) => (float[2] y) { a = Relu(x) b = Relu(a) c = Relu(b) y = Relu(c) }", {}
    )
    for node, name in zip(model.graph.node, ("r", "r", "r_1", ""), strict=True):
        node.name = name
    saved(model, tmp_path / "m.onnx")
    loaded = load_model(tmp_path / "m.onnx")
    node_names(loaded)
    names = [node.name for node in loaded.graph]
    assert names[0] == "r"
    assert len(set(names)) == 4
    assert all(names)


def test_a_text_that_is_none_is_an_error_when_the_model_is_written(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    whole = linear()
    whole.producer_name = "producer"
    path.write_bytes(whole.SerializeToString().replace(b"producer", b"produc\xff\xff"))
    with pytest.raises(SourceError, match="Export or copy it again"):
        optimize(read_graph(path), tmp_path / "o.onnx")


def test_a_graph_whose_name_is_no_text_is_refused_when_it_is_read(tmp_path: Path) -> None:
    """Inference would log a traceback and go on; found by the fuzzer of models."""
    path = tmp_path / "m.onnx"
    whole = linear()
    whole.graph.name = "of a graph"
    path.write_bytes(whole.SerializeToString().replace(b"of a graph", b"of a gra\xff\xff"))
    with pytest.raises(SourceError, match="is no UTF-8 text"):
        read_graph(path)
