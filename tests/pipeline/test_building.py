"""What a build takes beside graph and settings: times of kernels, and how long it takes."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import msgspec
import pytest

import trtbuild
from tests.cli.running import command
from tests.pipeline import models
from trtbuild.backends import Availability, tensorrt
from trtbuild.engine import EngineKey, Fingerprint, Manifest, Target
from trtbuild.errors import RecipeError
from trtbuild.pipeline import building
from trtbuild.pipeline.targets import plan_targets
from trtbuild.store import BlobLostError, Store, make_record
from trtbuild.store.collect import Limits, collect

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.pipeline.targets import Plan, Planned

HOPPER = Target(backend="tensorrt", arch="sm_90", os="linux-x86_64", device="H100")
LIBRARY = Fingerprint(backend="tensorrt", version="10.13.0", build="b")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def _hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan as on a machine with TensorRT and a GPU; nothing is built."""
    monkeypatch.setattr(tensorrt, "targets", lambda _: (Availability(target=HOPPER),))
    monkeypatch.setattr(tensorrt, "fingerprint", lambda _: LIBRARY)


def plan(folder: Path, timing_cache: str) -> Plan:
    recipe = models.recipe(folder, "tensorrt")
    options = {"timing_cache": timing_cache}
    build = msgspec.structs.replace(recipe.build, options=options)
    return plan_targets(msgspec.structs.replace(recipe, build=build), strict=False)


def key_of(planned: Planned) -> EngineKey:
    return EngineKey(
        network_sha256="0" * 64,
        profiles=(),
        settings=planned.settings,
        target=planned.target,
        fingerprint=planned.fingerprint,
    )


@pytest.mark.usefixtures("_hopper")
def test_a_file_of_times_is_used_from_the_recipes_folder_and_is_not_in_the_key(
    tmp_path: Path, store: Store
) -> None:
    (named,) = plan(tmp_path, "times.bin").planned
    assert building.timing_file(store, named) == tmp_path / "times.bin"
    (own,) = plan(tmp_path, "auto").planned
    assert key_of(named) == key_of(own)
    found = building.timing_file(store, own)
    assert found is not None
    assert found.parent == store.top / "timing"
    (off,) = plan(tmp_path, "off").planned
    assert building.timing_file(store, off) is None


@pytest.mark.usefixtures("_hopper")
def test_an_engine_for_windows_is_for_that_system_and_does_not_run_here(tmp_path: Path) -> None:
    recipe = models.recipe(tmp_path, "tensorrt")
    build = msgspec.structs.replace(recipe.build, options={"runtime_platform": "windows_amd64"})
    (found,) = plan_targets(msgspec.structs.replace(recipe, build=build), strict=False).planned
    assert found.target.os == "windows-AMD64"
    assert "built for Windows" in found.cannot_run
    (here,) = plan(tmp_path, "auto").planned
    assert (here.target.os, here.cannot_run) == (HOPPER.os, "")


@pytest.mark.usefixtures("_hopper")
def test_times_are_kept_apart_by_gpu_library_and_flags(tmp_path: Path, store: Store) -> None:
    (one,) = plan(tmp_path, "auto").planned
    settings = tuple(sorted({**dict(one.settings), "strict_nans": True}.items()))
    newer = msgspec.structs.replace(LIBRARY, version="11.4.0")
    others = (
        msgspec.structs.replace(one, settings=settings),
        msgspec.structs.replace(one, fingerprint=newer),
        msgspec.structs.replace(one, target=msgspec.structs.replace(HOPPER, device="H200")),
    )
    files = {building.timing_file(store, each) for each in (one, *others)}
    assert len(files) == 4


@pytest.mark.usefixtures("_hopper")
def test_a_pinned_cache_is_in_the_key_by_its_content(tmp_path: Path, store: Store) -> None:
    with pytest.raises(RecipeError, match="no timing cache to pin"):
        building.with_pinned(plan(tmp_path, "pinned"), store)
    keys = []
    for content in (b"times", b"other times", b"times"):
        (tmp_path / "times.bin").write_bytes(content)
        pinned = building.with_pinned(plan(tmp_path, f"pinned:{tmp_path}/times.bin"), store)
        (planned,) = pinned.planned
        sha256 = hashlib.sha256(content).hexdigest()
        assert dict(planned.settings)["timing_cache"] == f"pinned:{sha256}"
        file = building.timing_file(store, planned)
        assert file is not None
        assert file.read_bytes() == content
        keys.append(key_of(planned).digest)
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.usefixtures("_hopper")
def test_a_collection_keeps_the_pinned_cache_as_long_as_its_engine(
    tmp_path: Path, store: Store
) -> None:
    (tmp_path / "times.bin").write_bytes(b"times" * 100)
    pinned = building.with_pinned(plan(tmp_path, f"pinned:{tmp_path}/times.bin"), store)
    (planned,) = pinned.planned
    blobs = building.pinned_cache(store, planned)
    key = key_of(planned)
    store.put(make_record("engine", key.digest, key, {}, blobs))
    for path in (store.top / "cas").rglob("*"):
        os.utime(path, (0, 0))
    collect(store, Limits(high_bytes=1 << 30, low_bytes=1 << 30, keep_s=60))
    assert building.pinned_cache(store, planned) == blobs
    for path in (*(store.top / "cas").rglob("*"), *(store.top / "ac").rglob("*")):
        os.utime(path, (0, 0))
    collect(store, Limits(high_bytes=0, low_bytes=0, keep_s=60, grace_s=60))
    with pytest.raises(BlobLostError):
        building.pinned_cache(store, planned)


@pytest.mark.rtx
@pytest.mark.parametrize("mode", ["auto", "pinned", "times.bin"])
def test_tensorrt_rtx_refuses_a_timing_cache_and_says_why(
    mode: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = models.classifier(tmp_path / "model.onnx")
    arguments = ("--precision", "fp32", "--backend", "tensorrt-rtx", "--timing-cache", mode)
    done = command(
        monkeypatch, capfd, "engine", model, *arguments, "--store", tmp_path / "store"
    )
    assert done.code == 2
    assert "it times no kernels when it builds" in done.message


def test_a_running_build_tells_how_long_it_may_take_still() -> None:
    assert building.line("build", "Timing tactics 3/40", 30.4, 0) == (
        "build: 30 s, Timing tactics 3/40"
    )
    assert building.line("build", "timing", 30, 100) == "build: 30 s, timing, about 70 s left"
    assert building.line("build", "timing", 130, 100) == (
        "build: 130 s, timing, longer than the 100 s of before"
    )


def test_the_time_left_comes_from_the_last_build_for_the_target(
    tmp_path: Path, store: Store
) -> None:
    recipe = models.with_quantization(
        models.recipe(tmp_path, "onnxruntime"), precision="fp32", provider=None
    )
    (planned,) = plan_targets(recipe, strict=False).planned
    assert building.seconds_before(store, recipe.name, planned, "fp32") == 0
    report = trtbuild.build(recipe, store.root)
    record = store.get("engine", report.engines[0].key)
    assert record is not None
    seconds = building.seconds_before(store, recipe.name, planned, "fp32")
    assert seconds == msgspec.json.decode(record.value)["build_seconds"] > 0
    assert building.seconds_before(store, recipe.name, planned, "fp16") == 0
    assert building.seconds_before(store, "another", planned, "fp32") == 0
    manifest = record.read(Manifest)
    quick = msgspec.structs.replace(
        manifest,
        created="9999-01-01T00:00:00+00:00",
        build_seconds=0.001,
        refit_of=manifest.sha256,
        key="0" * 64,
    )
    key = msgspec.structs.replace(manifest.preimage, network_sha256="1" * 64)
    store.put(make_record("engine", key.digest, key, quick, record.blobs))
    assert building.seconds_before(store, recipe.name, planned, "fp32") == seconds


def test_a_watch_speaks_now_and_then_and_only_when_something_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    said: list[str] = []
    monkeypatch.setattr("trtbuild.pipeline.building.time.monotonic", lambda: now[0])
    watch = building.Watch(said.append, "build", 60)
    for now[0], doing in ((5, "parsing"), (11, ""), (12, "timing"), (15, "timing"), (23, "t")):
        watch(doing)
    assert said == ["build: 12 s, timing, about 48 s left", "build: 23 s, t, about 37 s left"]
