"""ONNX files are taken as they are, and every broken one is told in one sentence."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtbuild.engine import ShapeRange
from trtbuild.errors import (
    MissingBackendError,
    RecipeError,
    SourceError,
    UsageError,
)
from trtbuild.sources import ExportRequest, onnx_file, source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx

WEIGHTS = np.arange(9, dtype=np.float32).reshape(3, 3)


def model(weights: TensorProto, batch: int | str = "batch") -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 3])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def inline() -> TensorProto:
    return numpy_helper.from_array(WEIGHTS, "w")


def request(folder: Path, profiles: tuple[ShapeRange, ...] = ()) -> ExportRequest:
    return ExportRequest(
        location="m.onnx", folder=folder, example=None, profiles=profiles, out=folder / "o.onnx"
    )


def write(folder: Path, proto: onnx.ModelProto) -> None:
    (folder / "m.onnx").write_bytes(proto.SerializeToString())


def profile(low: int, high: int, name: str = "x") -> ShapeRange:
    return ShapeRange(input=name, min=(low, 3), opt=(high, 3), max=(high, 3))


@pytest.mark.parametrize("weights", ["inline", "w.bin"])
def test_a_sound_file_is_exported_and_computes(weights: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS.tobytes())
    write(tmp_path, model(inline() if weights == "inline" else external(weights)))
    graph = onnx_file.export(request(tmp_path, (profile(1, 8),)))
    assert [spec.shape for spec in graph.inputs] == [("batch", 3)]
    x = np.array([[1.0, 2.0, 3.0]], np.float32)
    outputs = onnx_file.reference("m.onnx", tmp_path).run({"x": x})
    np.testing.assert_allclose(outputs["y"], x @ WEIGHTS)


def bad_empty(folder: Path) -> None:
    (folder / "m.onnx").write_bytes(b"")


def bad_text(folder: Path) -> None:
    (folder / "m.onnx").write_text("this is a readme, not a model\n")


def bad_cut(folder: Path) -> None:
    whole = model(inline()).SerializeToString()
    (folder / "m.onnx").write_bytes(whole[: len(whole) // 2])


def bad_absent(folder: Path) -> None:
    (folder / "m.onnx").unlink(missing_ok=True)


def bad_folder(folder: Path) -> None:
    (folder / "m.onnx").mkdir()


def bad_missing_data(folder: Path) -> None:
    write(folder, model(external("gone.bin")))


def bad_short_data(folder: Path) -> None:
    (folder / "w.bin").write_bytes(b"1234")
    write(folder, model(external("w.bin")))


def bad_outside(folder: Path) -> None:
    (folder.parent / "secret.bin").write_bytes(WEIGHTS.tobytes())
    write(folder, model(external("../secret.bin")))


def bad_absolute(folder: Path) -> None:
    write(folder, model(external("/etc/hostname")))


def bad_link(folder: Path) -> None:
    (folder.parent / "secret.bin").write_bytes(WEIGHTS.tobytes())
    (folder / "w.bin").symlink_to(folder.parent / "secret.bin")
    write(folder, model(external("w.bin")))


def bad_operator(folder: Path) -> None:
    proto = model(inline())
    proto.graph.node[0].op_type = "MatMull"
    write(folder, proto)


def bad_types(folder: Path) -> None:
    proto = model(inline())
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    write(folder, proto)


def bad_size(folder: Path) -> None:
    write(folder, model(inline(), batch=0))


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (bad_empty, "empty"),
        (bad_text, "m.onnx"),
        (bad_cut, "m.onnx"),
        (bad_absent, "no such file"),
        (bad_folder, "is a folder"),
        (bad_missing_data, "gone.bin"),
        (bad_short_data, "w.bin"),
        (bad_outside, "outside"),
        (bad_absolute, "outside"),
        (bad_link, "outside"),
        (bad_operator, "MatMull"),
        (bad_types, "m.onnx"),
        (bad_size, "input 'x' has the shape [0, 3]"),
    ],
)
def test_a_broken_file_is_a_source_error(
    spoil: Callable[[Path], None], part: str, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    spoil(folder)
    for ask in (
        lambda: onnx_file.export(request(folder)),
        lambda: onnx_file.reference("m.onnx", folder),
    ):
        with pytest.raises(SourceError) as caught:
            ask()
        assert part in str(caught.value)


def test_flipped_bytes_are_an_error_or_a_model_but_never_anything_else(tmp_path: Path) -> None:
    whole = model(inline()).SerializeToString()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        spoiled = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            spoiled[place] ^= int(random.integers(1, 256))
        (tmp_path / "m.onnx").write_bytes(spoiled)
        try:
            onnx_file.export(request(tmp_path))
        except SourceError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("weights", ["inline", "external"])
def test_an_open_axis_that_is_written_as_minus_one_is_open(
    weights: str, tmp_path: Path
) -> None:
    """Exporters that know no names for axes write so; ONNX Runtime reads it so."""
    (tmp_path / "w.bin").write_bytes(WEIGHTS.tobytes())
    write(tmp_path, model(inline() if weights == "inline" else external("w.bin"), batch=-1))
    assert onnx_file.export(request(tmp_path, (profile(1, 8),))).inputs[0].shape == ("?", 3)
    given = {"x": np.ones((5, 3), np.float32)}
    assert onnx_file.reference("m.onnx", tmp_path).run(given)["y"].shape == (5, 3)


def test_a_fixed_axis_cannot_vary(tmp_path: Path) -> None:
    write(tmp_path, model(inline(), batch=4))
    assert onnx_file.export(request(tmp_path, (profile(4, 4),))).inputs[0].shape == (4, 3)
    with pytest.raises(RecipeError, match=r"x\]: axis 0 is fixed at 4 .* asks for 1 to 8"):
        onnx_file.export(request(tmp_path, (profile(1, 8),)))


def test_a_profile_of_an_unknown_input_or_rank_is_a_recipe_error(tmp_path: Path) -> None:
    write(tmp_path, model(inline()))
    with pytest.raises(RecipeError, match=r"profiles\.images.*expected one of x"):
        onnx_file.export(request(tmp_path, (profile(1, 8, "images"),)))
    flat = ShapeRange(input="x", min=(1,), opt=(1,), max=(2,))
    with pytest.raises(RecipeError, match="1 axes"):
        onnx_file.export(request(tmp_path, (flat,)))


def test_frameworks_are_found_by_name_and_their_absence_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert source("onnx").export is onnx_file.export
    with pytest.raises(UsageError, match=r"'caffe'.*onnx, torch, pt2"):
        source("caffe")
    for name in [n for n in sys.modules if n.startswith("trtbuild.sources.torch_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingBackendError, match=r"pip install 'trtbuild\[torch\]'"):
        source("torch")
