"""A second run computes nothing, notices whatever has changed, and serves nothing damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import onnx
import pytest
from onnx import helper
from onnx.external_data_helper import set_external_data

import trtbuild
from tests.pipeline import models
from trtbuild.canonical import encode, sha256_file
from trtbuild.engine import EngineKey, Manifest
from trtbuild.errors import DataError
from trtbuild.runtime.admission import admit_measuring
from trtbuild.store import Store, make_record

if TYPE_CHECKING:
    from trtbuild.recipe import Recipe
    from trtbuild.report.document import Report

ROOT = Path(__file__).parents[2]

HEAVY = (
    *("numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "tensorrt_rtx", "torch"),
    *("cryptography", "obstore", "trtbuild.cli.application", "trtbuild.pipeline.run"),
)

COMMAND = (
    "import sys\n"
    "from trtbuild.cli import main\n"
    "try:\n"
    "    main()\n"
    "finally:\n"
    "    print(*(name for name in {heavy} if name in sys.modules), file=sys.stderr)\n"
)


def build(recipe: Recipe, folder: Path) -> Report:
    return trtbuild.build(recipe, folder / "store")


@pytest.mark.rtx
def test_a_second_run_says_that_all_was_stored_and_imports_nothing_heavy(
    tmp_path: Path,
) -> None:
    recipe = models.recipe(tmp_path)
    arguments = [
        *(
            "engine",
            str(recipe.folder / "model.onnx"),
            "--precision",
            "int8",
            "--arch",
            "sm_89",
        ),
        *("--calibration", str(recipe.folder / "data.npz"), "--store", str(tmp_path / "store")),
    ]
    code = COMMAND.format(heavy=HEAVY)
    hits, loaded = [], []
    for extra in ([], ["--json"], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, *extra],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        loaded.append(done.stderr.splitlines()[-1])
        if extra:
            hits.append(json.loads(done.stdout))
    assert {"onnxruntime", "trtbuild.pipeline.run"} <= set(loaded[0].split())
    assert loaded[1:] == ["", ""]
    assert all(hit["full_cache_hit"] and hit["passed"] for hit in hits)
    assert all(stage["cached"] for hit in hits for stage in hit["stages"])
    assert hits[0] == hits[1]


@pytest.mark.rtx
def test_times_of_files_do_not_matter_only_content_does(tmp_path: Path) -> None:
    recipe = models.with_metric(models.recipe(tmp_path))
    build(recipe, tmp_path)
    for path in tmp_path.glob("*.*"):
        os.utime(path, (1, 1))
    assert build(recipe, tmp_path).full_cache_hit
    provider = tmp_path / "provider.py"
    provider.write_text(provider.read_text() + "\n# a remark\n")
    assert models.computed(build(recipe, tmp_path)) == ["verify"]


def flip(path: Path) -> None:
    """Change one bit of a file in the store, as a failing disk does."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


def incidents(report: Report) -> list[str]:
    return [finding.text for finding in report.findings if finding.stage == "store"]


@pytest.mark.rtx
def test_a_damaged_engine_is_never_served_but_built_again_and_told(tmp_path: Path) -> None:
    recipe = models.recipe(tmp_path)
    path = Path(build(recipe, tmp_path).engines[0].path)
    flip(path)
    second = build(recipe, tmp_path)
    assert models.computed(second) == ["build"]
    assert sha256_file(Path(second.engines[0].path)) == second.engines[0].sha256
    assert [text for text in incidents(second) if str(path) in text]
    third = build(recipe, tmp_path)
    assert third.full_cache_hit
    assert not incidents(third)


@pytest.mark.rtx
def test_an_engine_that_has_other_bytes_now_is_remembered_anew(tmp_path: Path) -> None:
    """Builds are not reproducible: a second one, after a loss, may give other bytes."""
    recipe = models.recipe(tmp_path)
    first = build(recipe, tmp_path).engines[0]
    store = Store.open(str(tmp_path / "store"))
    record = store.get("engine", first.key)
    assert record is not None
    store.path(first.sha256).unlink()
    blob = store.put_bytes("engine", b"another build")
    manifest = msgspec.structs.replace(
        record.read(Manifest), sha256=blob.sha256, bytes=blob.bytes
    )
    key = record.read_preimage(EngineKey)
    next((store.top / "ac" / "engine").rglob(first.key)).unlink()
    store.put(make_record("engine", first.key, key, manifest, (blob,)))
    assert build(recipe, tmp_path).engines[0].sha256 == blob.sha256
    last = build(recipe, tmp_path)
    assert last.engines[0].sha256 == blob.sha256
    assert all(stage.seconds == 0.0 for stage in last.stages)


@pytest.mark.rtx
def test_damaged_files_of_all_stages_are_made_again_in_one_run(tmp_path: Path) -> None:
    recipe = models.recipe(tmp_path)
    build(recipe, tmp_path)
    store = Store.open(str(tmp_path / "store"))
    kinds = ("source", "optimized", "ranges", "network", "report", "memo")
    records = [record for kind in kinds for record in store.records(kind)]
    assert {record.kind for record in records} == set(kinds)
    for record in records:
        for blob in record.blobs:
            flip(store.path(blob.sha256))
        if not record.blobs:
            flip(next((store.top / "ac" / record.kind).rglob(record.key)))
    second = build(models.with_profile(recipe, 1, 2, 3), tmp_path)
    assert second.passed
    assert len([text for text in incidents(second) if "quarantine" in text]) >= len(kinds)
    assert models.computed(build(models.with_profile(recipe, 1, 2, 4), tmp_path)) == ["build"]


def test_files_that_change_places_are_another_model(tmp_path: Path) -> None:
    constants = {"w": models.images(1, 3)[0, 0], "v": models.images(1, 4)[0, 0]}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="second"),
    ]
    path = models.save(
        tmp_path / "model.onnx",
        nodes,
        constants,
        [models.floats("x", "n", 16)],
        [models.floats("y", "n", 16)],
    )
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        set_external_data(tensor, location=f"{tensor.name}.bin")
    onnx.save(model, path)
    recipe = models.with_quantization(
        models.recipe(tmp_path, "onnxruntime"), precision="fp32", provider=None
    )
    first = build(recipe, tmp_path)
    assert build(recipe, tmp_path).full_cache_hit
    for old, new in (("w", "swap"), ("v", "w"), ("swap", "v")):
        (tmp_path / f"{old}.bin").rename(tmp_path / f"{new}.bin")
    assert build(recipe, tmp_path).source.digest != first.source.digest


@pytest.mark.parametrize(
    ("code", "part"),
    [
        (
            "calls += 1\n    assert calls < 3, 'the tape broke'\n    yield {'x': x}",
            "tape broke",
        ),
        ("yield {'x': np.random.default_rng().normal(size=x.shape).astype('f')}", "seed"),
        ("calls += 1\n    yield {'x': x[calls % 3:]}", "other batches"),
    ],
)
def test_a_provider_that_fails_or_changes_at_a_later_call_is_told(
    code: str, part: str, tmp_path: Path
) -> None:
    (tmp_path / "provider.py").write_text(
        "import numpy as np\nx = np.ones((4, 3, 16, 16), np.float32)\ncalls = 0\n"
        f"def calibration_batches():\n    global calls\n    {code}\n"
        "def evaluation_batches():\n    yield {'x': x}\n"
    )
    recipe = models.with_quantization(
        models.recipe(tmp_path, "onnxruntime"), provider="provider.py"
    )
    with pytest.raises(DataError, match=rf"provider\.py: calibration_batches.*{part}"):
        build(recipe, tmp_path)
    store = Store.open(str(tmp_path / "store"))
    assert not list(store.records("engine"))


def test_an_engine_that_another_version_recorded_is_made_again(tmp_path: Path) -> None:
    """A newer version has more to tell of an engine; its old record must not stop a run."""
    recipe = models.recipe(tmp_path, "onnxruntime")
    store = Store.open(str(tmp_path / "store"))
    (first,) = trtbuild.build(recipe, tmp_path / "store").engines
    record = store.get("engine", first.key)
    assert record is not None
    value = msgspec.json.decode(record.value)
    del value["fused_layers"]
    (path,) = (tmp_path / "store").glob(f"v1/ac/engine/*/{first.key}")
    path.unlink()
    store.put(msgspec.structs.replace(record, value=msgspec.Raw(encode(value))))
    shutil.rmtree(tmp_path / "store" / "v1" / "ac" / "memo")
    report = trtbuild.build(recipe, tmp_path / "store")
    assert (report.engines[0].cached, report.engines[0].fused_layers) == (
        False,
        first.fused_layers,
    )
    kept, ours = store.get("engine", first.key), store.get("engine", first.key, Manifest)
    assert kept is not None
    assert ours is not None
    assert b"fused_layers" not in bytes(kept.value), "the other version finds its own"
    assert ours.read(Manifest).fused_layers == first.fused_layers
    assert admit_measuring(store, ours.read(Manifest)).data == store.read(first.sha256)
