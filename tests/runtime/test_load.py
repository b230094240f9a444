"""``trtbuild.load``: sessions that compute, and engines that no runtime ever sees."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnxruntime as ort
import pytest

import trtbuild
from tests.pipeline import models
from trtbuild.backends import ort_session, processor
from trtbuild.engine import Manifest
from trtbuild.errors import MissingBackendError, TrustError, UsageError
from trtbuild.runtime.made_here import mark_made
from trtbuild.store import Store, make_record
from trtbuild.store.counters import flush, totals
from trtbuild.store.metrics import summarize

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.backends.session import LoadedSession
    from trtbuild.engine import EngineKey

ROOT = Path(__file__).parents[2]


@pytest.fixture
def built(tmp_path: Path) -> tuple[Store, Manifest]:
    """A store with one float engine for this processor, and its manifest."""
    recipe = models.recipe(tmp_path, "onnxruntime")
    recipe = models.with_quantization(recipe, precision="fp32", provider=None)
    engine = trtbuild.build(recipe, tmp_path / "store").engines[0]
    store = Store.open(str(tmp_path / "store"))
    record = store.get("engine", engine.key, Manifest)
    assert record is not None
    return store, record.read(Manifest)


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when any bytes reach the runtime."""

    def open_session(engine: bytes, target: object) -> None:
        pytest.fail(f"{len(engine)} bytes for {target} reached the runtime")

    monkeypatch.setattr(ort_session, "open_session", open_session)


def put(store: Store, manifest: Manifest, name: str) -> str:
    """Store a record of ``manifest`` under the key ``name``, its blob as it is, made here."""
    record = store.get("engine", manifest.key) or next(store.records("engine"))
    made = make_record("engine", name, manifest.preimage, manifest, record.blobs)
    assert not mark_made(store.put(made))
    return name


def test_a_session_computes_what_the_model_computes_from_eight_threads(
    built: tuple[Store, Manifest], tmp_path: Path
) -> None:
    store, manifest = built
    model = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    batches = [models.images(count, seed) for seed in range(20) for count in (1, 3)]
    names = (manifest.sha256, manifest.key, manifest.sha256[:10])
    for name in (*names, store.path(manifest.sha256)):
        session = trtbuild.load(name, store.root)
        assert [spec.name for spec in session.inputs] == ["x"]
        assert [spec.name for spec in session.outputs] == ["y"]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda x, s=session: s.run({"x": x})["y"], batches))
        for x, y in zip(batches, found, strict=True):
            np.testing.assert_allclose(y, model.run(None, {"x": x})[0], atol=1e-5)


def test_an_unknown_engine_is_told(built: tuple[Store, Manifest]) -> None:
    with pytest.raises(UsageError, match="names nothing"):
        trtbuild.load("0123456789", built[0].root)


@pytest.mark.usefixtures("unseen")
def test_damaged_bytes_are_refused_and_set_aside(built: tuple[Store, Manifest]) -> None:
    store, manifest = built
    path = store.path(manifest.sha256)
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(TrustError, match=r"quarantine.*trtbuild cache pull") as caught:
        trtbuild.load(manifest.key, store.root)
    assert caught.value.code == "T13"
    assert not path.exists()


def other_arch(manifest: Manifest) -> EngineKey:
    target = msgspec.structs.replace(manifest.preimage.target, arch="x86_64-other")
    return msgspec.structs.replace(manifest.preimage, target=target)


def other_version(manifest: Manifest) -> EngineKey:
    fingerprint = msgspec.structs.replace(manifest.preimage.fingerprint, version="1.0.0")
    return msgspec.structs.replace(manifest.preimage, fingerprint=fingerprint)


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (other_arch, ["x86_64-other", processor.arch()]),
        (other_version, ["1.0.0", ort.__version__]),
    ],
)
def test_an_engine_for_another_machine_or_version_is_refused(
    change: Callable[[Manifest], EngineKey], parts: list[str], built: tuple[Store, Manifest]
) -> None:
    store, manifest = built
    key = change(manifest)
    other = msgspec.structs.replace(manifest, key=key.digest, preimage=key)
    name = put(store, other, key.digest)
    with pytest.raises(TrustError) as caught:
        trtbuild.load(name, store.root)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.usefixtures("unseen")
def test_an_engine_of_another_version_is_not_measured_either(
    built: tuple[Store, Manifest],
) -> None:
    """Its baseline would be built by this version and stored as if by the other."""
    store, manifest = built
    key = other_version(manifest)
    other = msgspec.structs.replace(manifest, key=key.digest, preimage=key)
    name = put(store, other, key.digest)
    with pytest.raises(TrustError, match=re.escape("1.0.0")):
        trtbuild.verify(name, store.root)
    assert {record.key for record in store.records("engine")} == {manifest.key, name}


def test_loads_and_refusals_are_counted_at_once_and_are_no_hits(
    built: tuple[Store, Manifest],
) -> None:
    """A service runs for weeks and may be killed: it writes what it counted when it loads."""
    store, manifest = built
    flush(store)
    before = summarize(totals(store)).hit_rate
    trtbuild.load(manifest.key, store.root).close()
    store.path(manifest.sha256).chmod(0o644)
    store.path(manifest.sha256).write_bytes(bytes(manifest.bytes))
    for name in (manifest.key, "0123456789abcdef"):
        with pytest.raises((TrustError, UsageError)):
            trtbuild.load(name, store.root)
    found = {each.outcome: each.count for each in totals(store) if each.kind == "load"}
    assert found == {"loaded": 1, "refused": 1}, "a wrong name is no error of the store"
    summary = summarize(totals(store))
    assert (summary.loads, summary.refused, summary.hit_rate) == (1, 1, before)


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("change", [other_arch, other_version])
def test_a_record_whose_key_is_not_that_of_its_manifest_is_refused(
    change: Callable[[Manifest], EngineKey], built: tuple[Store, Manifest]
) -> None:
    """As it is when somebody makes an engine look as if it were for this machine."""
    store, manifest = built
    name = change(manifest).digest
    with pytest.raises(TrustError, match="tampered"):
        trtbuild.load(put(store, msgspec.structs.replace(manifest, key=name), name), store.root)


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("change", ["cut", "longer", "gone"])
def test_lost_bytes_are_refused_as_damaged_ones_are(
    built: tuple[Store, Manifest], change: str
) -> None:
    store, manifest = built
    path = store.path(manifest.sha256)
    content = path.read_bytes()
    path.unlink()
    if change != "gone":
        path.write_bytes(content[:-1] if change == "cut" else content + b"x")
    with pytest.raises(
        TrustError, match=r"lost or were damaged.*trtbuild cache pull"
    ) as caught:
        trtbuild.load(manifest.sha256, store.root)
    assert caught.value.code == "T13"


@pytest.mark.usefixtures("unseen")
def test_a_tampered_record_is_a_miss(built: tuple[Store, Manifest]) -> None:
    store, manifest = built
    path = next((store.top / "ac" / "engine").rglob(manifest.key))
    content = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(content.replace(b"A", b"B", 1))
    with pytest.raises(UsageError, match="names nothing"):
        trtbuild.load(manifest.key, store.root)


@pytest.mark.rtx
@pytest.mark.usefixtures("unseen")
def test_an_engine_for_an_absent_gpu_is_refused(tmp_path: Path) -> None:
    recipe = models.recipe(tmp_path, "tensorrt-rtx:sm_80")
    recipe = models.with_quantization(recipe, precision="fp32", provider=None)
    engine = trtbuild.build(recipe, tmp_path / "store").engines[0]
    with pytest.raises(MissingBackendError, match="cannot run here"):
        trtbuild.load(engine.key, tmp_path / "store")


def test_wrong_inputs_are_told(built: tuple[Store, Manifest]) -> None:
    session = trtbuild.load(built[1].key, built[0].root)
    for inputs, part in (
        ({}, "missing"),
        ({"z": models.images(1)}, "'z'"),
        ({"x": models.images(1).astype(np.float64)}, "float64"),
        ({"x": models.images(1)[0]}, "4 axes"),
        ({"x": models.images(1)[..., :8]}, "axis 3 must be 16"),
    ):
        with pytest.raises(UsageError, match=part):
            session.run(inputs)


def test_shapes_outside_of_the_profile_are_refused(built: tuple[Store, Manifest]) -> None:
    """As on a GPU; and a call with nothing ends the process in some operators."""
    session = trtbuild.load(built[1].key, built[0].root)
    for count in (1, 32):  # the ends of the profile that nobody asked for
        assert session.run({"x": models.images(count)})["y"].shape[0] == count
    with pytest.raises(UsageError, match=r"\[33, 3, 16, 16\] is outside of the profile"):
        session.run({"x": models.images(33)})
    with pytest.raises(UsageError, match=r"1 and more, got shape \[0, 3, 16, 16\]"):
        session.run({"x": models.images(0)})
    assert session.run({"x": models.images(2)})["y"].shape[0] == 2


def test_a_service_imports_no_onnx_no_framework_and_no_command_line(
    built: tuple[Store, Manifest],
) -> None:
    store, manifest = built
    code = (
        "import json, sys, numpy, trtbuild\n"
        f"session = trtbuild.load({manifest.key!r}, {str(store.root)!r})\n"
        "session.run({'x': numpy.zeros((2, 3, 16, 16), 'float32')})\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "onnxruntime" in loaded
    assert not loaded & {
        "onnx",
        "onnx_ir",
        "onnxscript",
        "polygraphy",
        "rich",
        "torch",
        "typer",
    }


def test_a_load_that_is_stopped_while_it_warms_up_leaves_no_session(
    built: tuple[Store, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[LoadedSession] = []

    def stopped(session: LoadedSession, _profiles: object, _runs: int) -> None:
        seen.append(session)
        raise KeyboardInterrupt

    monkeypatch.setattr("trtbuild.runtime.warmup.warm_up", stopped)
    store, manifest = built
    with pytest.raises(KeyboardInterrupt):
        trtbuild.load(manifest.key, str(store.root))
    (session,) = seen
    with pytest.raises(UsageError, match="closed"):
        session.run({"x": models.images(1)})
