"""Saved programs are converted as they were exported, and never run code of their own."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch.export import Dim
from torch.export.pt2_archive import PT2ArchiveWriter

from trtbuild.backends.ort_session import open_graph
from trtbuild.engine import ShapeRange
from trtbuild.errors import ExportError, RecipeError, SourceError
from trtbuild.sources import ExportRequest, torch_pt2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from trtbuild.graph import Graph

pytestmark = pytest.mark.frameworks


OWN_MEMBERS = {
    "archive_format",
    "archive_version",
    "byteorder",
    ".data/version",
    ".data/serialization_id",
}
"""What the writer of an archive adds by itself."""


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 4)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> dict[str, object]:
        y = self.layer(x)
        return {"y": y.reshape(-1, 2), "rest": (y + mask, x)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    example = {"x": torch.ones(4, 3), "mask": torch.ones(4, 1)}
    batch = Dim("n", min=1, max=64)
    for name, shapes in (("free", {"x": {0: batch}, "mask": {0: batch}}), ("fixed", None)):
        program = torch.export.export(
            Net().eval(), (example["x"],), {"mask": example["mask"]}, dynamic_shapes=shapes
        )
        torch.export.save(program, folder / f"{name}.pt2")
    return folder


def export(path: Path, out: Path, high: int = 8, name: str = "x") -> Graph:
    profile = ShapeRange(input=name, min=(1, 3), opt=(4, 3), max=(high, 3))
    request = ExportRequest(
        location=path.name, folder=path.parent, example=None, profiles=(profile,), out=out
    )
    return torch_pt2.export(request)


def noise(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_a_program_keeps_names_and_axes_and_computes(saved: Path, tmp_path: Path) -> None:
    graph = export(saved / "free.pt2", tmp_path / "o.onnx")
    assert {spec.name: spec.shape for spec in graph.inputs} == {
        "x": ("batch", 3),
        "mask": ("batch", 1),
    }
    assert [spec.name for spec in graph.outputs] == ["y", "rest_0", "rest_1"]
    session = torch_pt2.reference("free.pt2", saved)
    assert [spec.name for spec in session.inputs] == ["x", "mask"]
    for batch in (1, 2, 7):
        inputs = {"x": noise(batch, 3), "mask": noise(batch, 1)}
        expected, got = session.run(inputs), open_graph(graph.path, fused=False).run(inputs)
        assert list(got) == list(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-6)


def test_a_fixed_batch_cannot_be_freed(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"x\]: axis 0 is fixed at 4 .* asks for 1 to 8"):
        export(saved / "fixed.pt2", tmp_path / "o.onnx")


def test_sizes_beyond_those_of_the_export_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"up to 65 on axis 0.*at most 64"):
        export(saved / "free.pt2", tmp_path / "o.onnx", high=65)


def test_a_profile_of_an_unknown_input_is_a_recipe_error(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="expected one of x, mask"):
        export(saved / "free.pt2", tmp_path / "o.onnx", name="images")


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.mark),)


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Copy an archive member by member."""
    with zipfile.ZipFile(source) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with PT2ArchiveWriter(str(target)) as writer:
        for name, data in members.items():
            inner = name.partition("/")[2]
            if inner not in OWN_MEMBERS:
                writer.write_bytes(inner, change(inner, data))


def bomb_in_examples(name: str, data: bytes, mark: Path) -> bytes:
    if name != "data/sample_inputs/model.pt":
        return data
    buffer = io.BytesIO()
    torch.save(((Bomb(mark),), {}), buffer)
    return buffer.getvalue()


def bomb_in_weights(name: str, data: bytes, mark: Path) -> bytes:
    if name == "data/weights/weight_0":
        return pickle.dumps(Bomb(mark))
    if name == "data/weights/model_weights_config.json":
        config = json.loads(data)
        for entry in config["config"].values():
            entry["use_pickle"] = True
        return json.dumps(config).encode()
    return data


def bomb_in_sizes(name: str, data: bytes, mark: Path) -> bytes:
    if name != "models/model.json":
        return data
    code = f"__import__('os').mkdir('{mark}')"
    return data.replace(b"Symbol('s", f"{code} or Symbol('s".encode())


def bomb_in_operator(name: str, data: bytes, mark: Path) -> bytes:  # noqa: ARG001  as the others
    return data.replace(b"torch.ops.aten.linear.default", b"torch.os.system")


def bomb_in_names(name: str, data: bytes, mark: Path) -> bytes:
    if name != "models/model.json":
        return data
    model = json.loads(data)
    code = f"x=__import__('os').mkdir('{mark}')"
    model["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [
        code,
        "m",
    ]
    return json.dumps(model).encode()


@pytest.mark.parametrize(
    "bomb",
    [bomb_in_examples, bomb_in_weights, bomb_in_sizes, bomb_in_operator, bomb_in_names],
)
def test_an_archive_with_code_in_it_is_refused_and_does_not_run(
    bomb: Callable[[str, bytes, Path], bytes], saved: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "exploded"
    target = tmp_path / "bad.pt2"
    rewrite(saved / "free.pt2", target, lambda name, data: bomb(name, data, mark))
    with pytest.raises(SourceError, match=r"bad\.pt2: .*could run code"):
        torch_pt2.reference("bad.pt2", tmp_path)
    assert not mark.exists()


def test_an_unchanged_copy_made_that_way_is_taken(saved: Path, tmp_path: Path) -> None:
    rewrite(saved / "free.pt2", tmp_path / "good.pt2", lambda _, data: data)
    session = torch_pt2.reference("good.pt2", tmp_path)
    assert session.run({"x": noise(2, 3), "mask": noise(2, 1)})["y"].shape == (4, 2)


def test_guards_of_the_file_are_not_compiled(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "exploded"

    def change(name: str, data: bytes) -> bytes:
        if name != "models/model.json":
            return data
        model = json.loads(data)
        model["guards_code"] = [f"__import__('os').mkdir('{mark}')"]
        return json.dumps(model).encode()

    rewrite(saved / "free.pt2", tmp_path / "guarded.pt2", change)
    export(tmp_path / "guarded.pt2", tmp_path / "o.onnx")
    session = torch_pt2.reference("guarded.pt2", tmp_path)
    session.run({"x": noise(2, 3), "mask": noise(2, 1)})
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut", None])
def test_what_is_no_archive_is_a_source_error(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "net.pt2").write_bytes(content)
    with pytest.raises(SourceError, match=r"net\.pt2"):
        torch_pt2.reference("net.pt2", tmp_path)


def test_a_cut_archive_is_a_source_error(saved: Path, tmp_path: Path) -> None:
    whole = (saved / "free.pt2").read_bytes()
    (tmp_path / "net.pt2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"net\.pt2"):
        torch_pt2.reference("net.pt2", tmp_path)
