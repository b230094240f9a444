"""A model read without its large weights is the same model, whatever its bytes are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtbuild.errors import SourceError
from trtbuild.graph import outline
from trtbuild.graph.model import load_model, read_graph
from trtbuild.graph.outline import LARGE_BYTES, fill, read_outline, write_copy, write_model
from trtbuild.graph.structure import load_without_weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GRAPH, INITIALIZER = b"\x3a", b"\x2a"


def tensor(name: str, numbers: int = LARGE_BYTES, kind: str = "float32") -> onnx.TensorProto:
    found = numpy_helper.from_array(np.arange(numbers).astype(kind), name)
    found.doc_string = "behind the data"
    return found


def model(*weights: onnx.TensorProto) -> onnx.ModelProto:
    names = [weight.name for weight in weights]
    nodes = [helper.make_node("Sum", ["x", *names], ["y"], name="sum")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], list(weights))
    return helper.make_model(graph, producer_name="somebody", doc_string="words " * 9)


def written(tmp_path: Path, data: bytes | onnx.ModelProto) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    return path


def refilled(path: Path) -> onnx.ModelProto:
    found = read_outline(path)
    weights = found.proto.graph.initializer
    assert not any(weights[index].HasField("raw_data") for index in found.places)
    return fill(found, path)


def strings() -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(["a" * LARGE_BYTES, "b"], object), "texts")


def packed() -> onnx.TensorProto:
    return helper.make_tensor("packed", TensorProto.FLOAT, [LARGE_BYTES], [1.5] * LARGE_BYTES)


def outside() -> onnx.TensorProto:
    found = tensor("outside")
    found.data_location = TensorProto.EXTERNAL
    return found


WEIGHTS = {
    "small": [tensor("a", 9)],
    "large among small": [tensor("a", 9), tensor("b"), tensor("c", 3), tensor("d")],
    "longest that is small": [tensor("a", LARGE_BYTES // 4 - 1)],
    "shortest that is large": [tensor("a", LARGE_BYTES // 4)],
    "in fields of a type": [packed(), tensor("b")],
    "texts": [strings(), tensor("b")],
    "said to lie outside": [outside(), tensor("b")],
    "none": [],
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_with_its_weights_put_back_it_is_the_model(
    tmp_path: Path, weights: list[onnx.TensorProto]
) -> None:
    whole = model(*weights)
    assert refilled(written(tmp_path, whole)) == whole


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_a_copy_has_the_bytes_of_the_model(
    tmp_path: Path, weights: list[onnx.TensorProto]
) -> None:
    """Copied from file to file, and written from memory; where weights lie is known of both."""
    whole = model(*weights)
    path, copy = written(tmp_path, whole), tmp_path / "copy.onnx"
    assert write_copy(read_outline(path), path, copy).places == read_outline(path).places
    assert copy.read_bytes() == path.read_bytes()
    write_model(whole, tmp_path / "written.onnx")
    assert (tmp_path / "written.onnx").read_bytes() == path.read_bytes()


def test_only_large_weights_stay_in_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, model(tensor("a", 9), tensor("b"), packed(), outside()))
    assert read_outline(path).places.keys() == {1}


def odd_models() -> Iterator[tuple[str, bytes]]:
    """Yield bytes that protobuf reads, and no exporter writes."""
    whole = model(tensor("a")).SerializeToString()
    yield (
        "a second graph, merged with the first",
        whole + model(tensor("b")).SerializeToString(),
    )
    yield "fields that nobody knows", b"\xf8\x7f\x01" + whole + b"\xfa\x7f\x02hi"
    yield "a group", whole + b"\xfb\x7f\x08\x01\xfc\x7f"
    body = model(tensor("a")).graph.SerializeToString()
    twice = tensor("t").SerializeToString() + tensor("t", kind="int32").SerializeToString()
    body += INITIALIZER + outline._varint(len(twice)) + twice  # noqa: SLF001  as the file has it
    yield "raw data twice", GRAPH + outline._varint(len(body)) + body  # noqa: SLF001  the same


@pytest.mark.parametrize("data", dict(odd_models()).values(), ids=dict(odd_models()))
def test_odd_bytes_are_read_as_protobuf_reads_them(tmp_path: Path, data: bytes) -> None:
    whole = onnx.ModelProto.FromString(data)
    assert refilled(written(tmp_path, data)) == whole


def seen(path: Path) -> tuple[str, ...]:
    """Return what is read of a file, or what is said against it."""
    try:
        graph = read_graph(path)
        names = [value.name for value in load_model(path).graph.initializers.values()]
    except SourceError as error:
        return (str(error),)
    return (graph.sha256, str(graph.inputs), str(graph.outputs), *map(str, names))


def test_damaged_files_are_seen_as_a_whole_parse_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes are changed, cut out and put in, in what the walk reads and in weights."""
    whole = model(tensor("a", 40), tensor("b", 9), tensor("c", 30, "int64")).SerializeToString()
    draw, different = np.random.default_rng(0), 0
    for _ in range(1500):
        at, data = int(draw.integers(len(whole))), bytearray(whole)
        data[at : at + int(draw.integers(3))] = draw.bytes(int(draw.integers(3)))
        path = written(tmp_path, bytes(data))
        with monkeypatch.context() as patch:
            patch.setattr(outline, "LARGE_BYTES", 64)
            found = seen(path)
        assert seen(path) == found, f"byte {at}: {bytes(data[at : at + 3])!r}"
        different += len(found) > 1
    assert 300 < different < 1200


def test_integers_keep_their_values_where_weights_lose_theirs(tmp_path: Path) -> None:
    """A shape is computed of integers, however many there are."""
    path = written(tmp_path, model(tensor("w"), tensor("n", kind="int64")))
    weights, numbers = load_without_weights(path).graph.initializer
    assert not weights.HasField("raw_data")
    assert numbers == tensor("n", kind="int64")


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, model(tensor("a")).SerializeToString()[:-99])
    with pytest.raises(SourceError, match="cut short"):
        read_graph(path)
