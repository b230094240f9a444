"""Models in a hub's cache: links to blobs of their repository are followed, others are not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from tests.backends import graphs
from trtbuild.errors import SourceError
from trtbuild.graph.model import read_graph
from trtbuild.sources import ExportRequest, onnx_file
from trtbuild.sources.tracing import traced

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Change = Callable[[Path, Path], None]

SECRET = b"x" * 10_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model and its data in a subfolder of a snapshot, as huggingface_hub leaves them."""
    return snapshot(tmp_path / "hub" / "models--owner--name")


def snapshot(repository: Path) -> Path:
    folder = repository / "snapshots" / "0123abc" / "onnx"
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    proto = onnx.load(graphs.residual(repository / "m.onnx", None).path)
    (repository / "m.onnx").unlink()
    onnx.save(
        proto,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=0,
    )
    for index, name in enumerate(("model.onnx", "model.onnx_data")):
        (folder / name).rename(repository / "blobs" / f"{index}")
        (folder / name).symlink_to(f"../../../blobs/{index}")
    return folder / "model.onnx"


def request(model: Path, work: Path) -> ExportRequest:
    work.mkdir()
    out = work / "model.onnx"
    return ExportRequest(location=str(model), folder=work, example=None, profiles=(), out=out)


def test_a_model_of_a_snapshot_is_exported_and_computes(model: Path, tmp_path: Path) -> None:
    graph, dependencies = traced(lambda: onnx_file.export(request(model, tmp_path / "work")))
    assert graph.sha256 == read_graph(model).sha256
    assert not any(path.is_symlink() for path in graph.path.parent.iterdir())
    repository = model.parents[3]
    read = {each.path for each in dependencies.files}
    assert {str(model), str(repository / "blobs" / "1")} <= read, "data are dependencies too"
    assert not any(path.startswith(str(tmp_path / "work")) for path in read)
    session = onnx_file.reference(str(model), tmp_path)
    size = tuple(n if isinstance(n, int) else 1 for n in session.inputs[0].shape)
    x = np.ones(size, np.float32)
    (here,) = session.run({session.inputs[0].name: x}).values()
    (there,) = onnx_file.reference(str(graph.path), tmp_path).run({"x": x}).values()
    np.testing.assert_array_equal(here, there)


def test_a_cache_behind_a_link_is_one_all_the_same(model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "hub")
    path = tmp_path / "link" / model.relative_to(tmp_path / "hub")
    assert onnx_file.export(request(path, tmp_path / "work")).sha256


def _elsewhere(data: Path, secret: Path) -> None:
    data.unlink()
    data.symlink_to(secret)


def _other_repository(data: Path, secret: Path) -> None:
    other = snapshot(secret.parent / "hub" / "models--other--name")
    data.unlink()
    data.symlink_to(other.parents[3] / "blobs" / "1")


def _blob_is_a_link(data: Path, secret: Path) -> None:
    blob = data.resolve()
    blob.unlink()
    blob.symlink_to(secret)


def _blob_is_a_hard_link(data: Path, secret: Path) -> None:
    blob = data.resolve()
    blob.unlink()
    os.link(secret, blob)


def _below_the_blobs(data: Path, secret: Path) -> None:
    folder = data.resolve().parent / "folder"
    folder.symlink_to(secret.parent)
    data.unlink()
    data.symlink_to(folder / secret.name)


def _beside_the_blobs(data: Path, secret: Path) -> None:
    refs = data.resolve().parents[1] / "refs"
    refs.mkdir()
    secret.rename(refs / "main")
    data.unlink()
    data.symlink_to(refs / "main")


def _second_file(data: Path, secret: Path) -> None:
    model = data.with_name("model.onnx")
    proto = onnx.load(model, load_external_data=False)
    for entry in proto.graph.initializer[-1].external_data:
        entry.value = {"location": "second", "offset": "0"}.get(entry.key, entry.value)
    model.resolve().write_bytes(proto.SerializeToString())
    data.with_name("second").symlink_to(secret)


def _pipe(data: Path, secret: Path) -> None:
    del secret
    blob = data.resolve()
    blob.unlink()
    os.mkfifo(blob)


@pytest.mark.parametrize(
    "change",
    [
        _elsewhere,
        _other_repository,
        _blob_is_a_link,
        _blob_is_a_hard_link,
        _below_the_blobs,
        _beside_the_blobs,
        _second_file,
        _pipe,
    ],
)
def test_what_is_no_blob_of_the_repository_is_refused(
    change: Change, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    change(model.with_name("model.onnx_data"), tmp_path / "secret")
    with pytest.raises(SourceError) as caught:
        onnx_file.export(request(model, tmp_path / "work"))
    assert str(model) in str(caught.value)
    copied = [path.read_bytes() for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert not any(SECRET[:100] in each for each in copied)


@pytest.mark.parametrize("location", ["../../../blobs/1", "/etc/passwd", "..", "a\0b", ""])
def test_a_location_is_no_way_to_the_blobs(location: str, model: Path, tmp_path: Path) -> None:
    """Only links that the hub's client made lead there, not what a model says."""
    proto = onnx.load(model, load_external_data=False)
    tensor = proto.graph.initializer[0]
    next(entry for entry in tensor.external_data if entry.key == "location").value = location
    model.resolve().write_bytes(proto.SerializeToString())
    with pytest.raises(SourceError):
        onnx_file.export(request(model, tmp_path / "work"))
    with pytest.raises(SourceError):
        read_graph(model)


def test_links_out_of_any_other_folder_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "hub" / "models--owner--name").rename(tmp_path / "hub" / "name")
    path = tmp_path / "hub" / "name" / model.relative_to(model.parents[3])
    with pytest.raises(SourceError, match="outside the model's folder"):
        onnx_file.export(request(path, tmp_path / "work"))
