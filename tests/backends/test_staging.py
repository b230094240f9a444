"""The private copy of a model: nothing from outside of its folder gets in."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.backends import graphs
from trtbuild.backends import staging
from trtbuild.errors import BuildError, SourceError
from trtbuild.graph import Graph
from trtbuild.graph.model import read_graph

if TYPE_CHECKING:
    from pathlib import Path

WEIGHT = "conv_0_w"


def graph_of(path: Path) -> Graph:
    """Return the graph in a file, or one without a digest where nobody could read it."""
    try:
        return read_graph(path)
    except SourceError:
        return Graph(path=path, sha256="0" * 64, inputs=(), outputs=())


def external(folder: Path, location: str) -> Path:
    """Write a model with one weight in ``location``, and return the model's path."""
    folder.mkdir()
    graph = graphs.chain(folder / "m.onnx", ["conv"])
    size = graphs.CHANNELS * graphs.CHANNELS * 9 * 4
    graphs.move_outside(graph.path, {WEIGHT: (location, size)})
    return graph.path


def data() -> bytes:
    return np.arange(graphs.CHANNELS * graphs.CHANNELS * 9, dtype=np.float32).tobytes()


def test_data_beside_the_model_is_copied(tmp_path: Path) -> None:
    path = external(tmp_path / "a", "weights/conv.bin")
    (tmp_path / "a" / "weights").mkdir()
    (tmp_path / "a" / "weights" / "conv.bin").write_bytes(data())
    staged = staging.stage(graph_of(path), tmp_path / "staged")
    model = onnx.load(staged.path)
    (weight,) = [t for t in model.graph.initializer if t.name == WEIGHT]
    assert weight.raw_data == data()
    modes = {stat.S_IMODE(file.stat().st_mode) for file in staged.path.parent.glob("data_*")}
    assert modes == {0o600}
    assert stat.S_IMODE(staged.path.parent.stat().st_mode) == 0o700


def test_a_link_inside_of_the_folder_is_followed(tmp_path: Path) -> None:
    path = external(tmp_path / "a", "link.bin")
    (tmp_path / "a" / "real.bin").write_bytes(data())
    (tmp_path / "a" / "link.bin").symlink_to("real.bin")
    staged = staging.stage(graph_of(path), tmp_path / "staged")
    assert (staged.path.parent / "data_0").read_bytes() == data()
    assert not (staged.path.parent / "data_0").is_symlink()


def _symlink(folder: Path, secret: Path) -> str:
    (folder / "w.bin").symlink_to(secret)
    return "w.bin"


def _linked_folder(folder: Path, secret: Path) -> str:
    (folder / "sub").symlink_to(secret.parent)
    return f"sub/{secret.name}"


def _hard_link(folder: Path, secret: Path) -> str:
    os.link(secret, folder / "w.bin")
    return "w.bin"


def _pipe(folder: Path, secret: Path) -> str:
    del secret
    os.mkfifo(folder / "w.bin")
    return "w.bin"


def _folder(folder: Path, secret: Path) -> str:
    del secret
    (folder / "w.bin").mkdir()
    return "w.bin"


def _circle(folder: Path, secret: Path) -> str:
    del secret
    (folder / "w.bin").symlink_to("w.bin")
    return "w.bin"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_symlink, "link that leaves"),
        (_linked_folder, "link that leaves"),
        (_hard_link, "hard link"),
        (_pipe, "not a regular file"),
        (_folder, "cannot be read|not a regular file"),
        (_circle, "cannot be read"),
        (lambda _, secret: f"../{secret.parent.name}/{secret.name}", "not a path below"),
        (lambda _, secret: str(secret), "not a path below"),
        (lambda _, secret: f"sub/../../{secret.name}", "not a path below"),
        (lambda *_: "", "not a path below"),
        (lambda *_: "missing.bin", "cannot be read"),
    ],
)
def test_data_from_elsewhere_is_refused(
    make: graphs.MakeData, words: str, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    secret = tmp_path / "elsewhere" / "secret.bin"
    secret.write_bytes(data())
    folder = tmp_path / "a"
    path = external(folder, "placeholder")
    location = make(folder, secret)
    graphs.move_outside(path, {WEIGHT: (location, len(data()))})
    with pytest.raises(BuildError, match=words) as caught:
        staging.stage(graph_of(path), tmp_path / "staged")
    assert str(path) in str(caught.value)
    assert not any((tmp_path / "staged").iterdir())


def test_two_locations_for_one_tensor_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path / "a", "w.bin")
    (tmp_path / "a" / "w.bin").write_bytes(data())
    model = onnx.load(path, load_external_data=False)
    (weight,) = [t for t in model.graph.initializer if t.name == WEIGHT]
    weight.external_data.add(key="location", value="../secret.bin")
    onnx.save(model, path)
    with pytest.raises(BuildError, match="names one key twice"):
        staging.stage(graph_of(path), tmp_path / "staged")


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"not a model", b"\x08\x08\x12\xff"])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(BuildError, match=r"m\.onnx: "):
        staging.stage(graph_of(path), tmp_path / "staged")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="No such file"):
        staging.stage(graph_of(tmp_path / "m.onnx"), tmp_path / "staged")


def test_a_model_that_is_not_the_one_of_the_key_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path / "a", "w.bin")
    (tmp_path / "a" / "w.bin").write_bytes(data())
    graph = read_graph(path)
    staging.stage(graph, tmp_path / "same")
    (tmp_path / "a" / "w.bin").write_bytes(data()[::-1])
    with pytest.raises(BuildError, match="changed while it was built"):
        staging.stage(graph, tmp_path / "other")


def test_a_pipe_in_the_models_place_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(BuildError, match="not a regular file"):
        staging.read(tmp_path / "m.onnx")
    with pytest.raises(SourceError, match="not a regular file"):
        read_graph(tmp_path / "m.onnx")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=1, max_size=6)
)
def test_names_become_unique_and_can_be_read_back(
    names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("names")
    graph = graphs.chain(folder / "m.onnx", names)
    staged = staging.stage(graph, folder / "staged")
    written = [node.name for node in onnx.load(staged.path).graph.node]
    assert len(set(written)) == len(names)
    assert all(name.isascii() and name.isidentifier() for name in written)
    outputs = [node.output[0] for node in staged.model.graph.node]
    wanted = [name or f"node_of_{out}" for name, out in zip(names, outputs, strict=True)]
    assert [staged.nodes[name].name for name in written] == wanted
    assert staged.original(f"In node {written[0]} [Conv]") == f"In node {wanted[0]} [Conv]"


def test_nodes_of_subgraphs_are_renamed_too(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    bodies = [
        helper.make_graph([helper.make_node(op, ["x"], ["y"], name="same")], op, [], [value])
        for op in ("Neg", "Abs")
    ]
    choice = helper.make_node(
        "If", ["c"], ["y"], name="same", then_branch=bodies[0], else_branch=bodies[1]
    )
    inputs = [
        helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4]),
    ]
    graph = helper.make_graph([choice], "g", inputs, [value])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    staged = staging.stage(graph_of(tmp_path / "m.onnx"), tmp_path / "staged")
    assert [node.operator for node in staged.nodes.values()] == ["If", "Abs", "Neg"]
    assert {node.name for node in staged.nodes.values()} == {"same"}
