"""Which stored engine may be given new weights, and why none, decided without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import onnx
import pytest

from tests.pipeline import models
from trtbuild.backends import gpu
from trtbuild.engine import EngineKey, Fingerprint, Layers, Manifest, Target
from trtbuild.errors import BuildError
from trtbuild.graph.model import read_graph
from trtbuild.graph.structure import Structure, structure_of
from trtbuild.pipeline import building, refitting
from trtbuild.runtime.made_here import mark_made
from trtbuild.store import Store, make_record

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.engine import Setting

OLD = Structure(sha256="a" * 64, weights={"w": "0", "b": "1"})
NEW = Structure(sha256="a" * 64, weights={"w": "2", "b": "1"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "why_none", lambda: "")


def key(network: str, **settings: Setting) -> EngineKey:
    return EngineKey(
        network_sha256=network * 64,
        profiles=(),
        settings=tuple(sorted({"refit": True, **settings}.items())),
        target=Target(backend="tensorrt", arch="sm_90", os="linux-x86_64"),
        fingerprint=Fingerprint(backend="tensorrt", version="10.13", build=""),
    )


def put(store: Store, of: EngineKey, structure: Structure, refit_of: str = "") -> str:
    """Store an engine of a key, and return its digest."""
    blob = store.put_bytes("engine", of.digest.encode())
    manifest = Manifest(
        key=of.digest,
        preimage=of,
        sha256=blob.sha256,
        bytes=blob.bytes,
        inputs=(),
        outputs=(),
        layers=Layers(layers=()),
        precision_requested="fp16",
        int8_mac_share=0.0,
        fused_layers=0,
        warnings=(),
        build_seconds=1.0,
        peak_rss_bytes=0,
        created="2026-01-31T12:00:00Z",
        trtbuild_version="",
        recipe="{}",
        refit_of=refit_of,
    )
    blobs = (blob, refitting.put_structure(store, structure))
    assert not mark_made(store.put(make_record("engine", of.digest, of, manifest, blobs)))
    return blob.sha256


@pytest.mark.usefixtures("_gpu")
def test_an_engine_that_differs_in_weights_alone_is_refitted(store: Store) -> None:
    sha256 = put(store, key("1"), OLD)
    found = refitting.choose(store, key("2"), NEW).refit
    assert found is not None
    assert (found.donor.sha256, found.changed) == (sha256, ("w",))
    assert found.path.read_bytes() == key("1").digest.encode()
    assert refitting.told(found, 0.42) == (
        f"refitted from engine {sha256[:12]} in 0.4 s, not built: 1 weights differ"
    )


@pytest.mark.usefixtures("_gpu")
def test_an_engine_from_elsewhere_gives_its_code_to_no_other(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, key("1"), OLD)
    monkeypatch.setenv("TRTBUILD_STATE", str(tmp_path / "another machine"))
    assert refitting.choose(store, key("2"), NEW).refit is None


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize(
    "other",
    [msgspec.structs.replace(key("1"), profiles=((),)), key("1", strict_nans=True), key("2")],
    ids=["profiles", "settings", "itself"],
)
def test_an_engine_of_another_key_is_none_to_refit(other: EngineKey, store: Store) -> None:
    put(store, other, OLD)
    assert refitting.choose(store, key("2"), NEW) == refitting.Choice()


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize(
    ("settings", "structure", "words"),
    [
        ({}, msgspec.structs.replace(OLD, sha256="b" * 64), "more than weights"),
        ({"sparse_weights": True}, OLD, "leave sparse_weights out"),
        ({"refit": False, "refit_identical": True}, OLD, "set refit in its place"),
    ],
)
def test_what_forbids_a_refit_is_told(
    settings: dict[str, Setting], structure: Structure, words: str, store: Store
) -> None:
    sha256 = put(store, key("1", **settings), structure)
    found = refitting.choose(store, key("2", **settings), NEW)
    assert found.refit is None
    assert found.reason.startswith(f"built, not refitted from engine {sha256[:12]}: ")
    assert words in found.reason


def test_without_a_gpu_the_report_says_why_it_was_built(store: Store) -> None:
    if not gpu.why_none():
        pytest.skip("there is a GPU")
    put(store, key("1"), OLD)
    found = refitting.choose(store, key("2"), NEW)
    assert found.refit is None
    assert f"a refit takes a GPU: {gpu.why_none()}" in found.reason


@pytest.mark.usefixtures("_gpu")
def test_refitted_engines_and_lost_ones_give_nothing(store: Store) -> None:
    put(store, key("1"), OLD, refit_of="c" * 64)
    assert refitting.choose(store, key("2"), NEW) == refitting.Choice()
    lost = put(store, key("3"), OLD)
    store.path(lost).unlink()
    assert refitting.choose(store, key("2"), NEW) == refitting.Choice()


@pytest.mark.usefixtures("_gpu")
def test_engines_that_another_version_stored_are_passed_over(store: Store) -> None:
    put(store, key("1"), OLD)
    record = store.get("engine", key("1").digest)
    assert record is not None
    value = {**msgspec.json.decode(record.value), "key": key("3").digest}
    del value["refit_of"]
    store.put(make_record("engine", key("3").digest, key("3"), value, record.blobs))
    assert len(list(building.engines(store))) == 1
    assert refitting.choose(store, key("2"), NEW).refit is not None


def test_the_network_of_a_stripped_engine_is_stored_as_the_parser_read_it(
    tmp_path: Path, store: Store
) -> None:
    path = models.classifier(tmp_path / "model.onnx")
    outside = tmp_path / "outside.onnx"
    onnx.save(
        onnx.load(path), outside, save_as_external_data=True, location="d", size_threshold=0
    )
    for index, each in enumerate((path, outside)):
        folder = tmp_path / str(index)
        folder.mkdir()
        blob = refitting.put_weights(store, read_graph(each), folder)
        kept = onnx.load_model_from_string(store.read(blob.sha256))
        assert [node.name for node in kept.graph.node][:2] == ["onnx_node_0", "onnx_node_1"]
        (tmp_path / "kept.onnx").write_bytes(store.read(blob.sha256))
        weights = structure_of(tmp_path / "kept.onnx").weights
        assert weights == structure_of(path).weights


def test_a_network_that_is_too_large_for_one_file_is_refused(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refitting, "_MOST_BYTES", 100)
    graph = read_graph(models.classifier(tmp_path / "model.onnx"))
    with pytest.raises(BuildError, match="leave strip_plan out"):
        refitting.put_weights(store, graph, tmp_path)
