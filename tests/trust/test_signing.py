"""A builder signs what it built, as it measured it; a tier may have anything for a key."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import trtbuild
from tests.pipeline import models
from tests.trust.commands import run
from trtbuild.canonical import digest
from trtbuild.engine import Manifest
from trtbuild.errors import TrustError
from trtbuild.pipeline.signing import sign_report, signer
from trtbuild.recipe import Gates
from trtbuild.store import Store, make_record, put_plan
from trtbuild.store.statements import statements
from trtbuild.store.tiers import transfer
from trtbuild.store.tiers.address import read_address
from trtbuild.store.tiers.connect import connect

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.recipe import Recipe
    from trtbuild.report.document import Report
    from trtbuild.store import Record


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A builder's own folders, with a key that signs, and a mirror that others write to."""
    monkeypatch.setenv("TRTBUILD_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    run("keys", "generate", "nightly", "--use")
    (tmp_path / "mirror").mkdir()
    return tmp_path


@pytest.fixture
def elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """What somebody without a key built of the same model on another machine."""
    with monkeypatch.context() as patch:
        patch.setenv("TRTBUILD_STATE", str(folder / "elsewhere-state"))
        patch.setenv("TRTBUILD_SIGNING_KEY", "")
        for precision, provider in (("fp32", None), ("fp32", "data.npz")):
            trtbuild.build(recipe(folder, precision, provider), folder / "elsewhere")
    return Store.open(str(folder / "elsewhere"))


def recipe(folder: Path, precision: str = "fp32", provider: str | None = None) -> Recipe:
    given = models.recipe(folder, "onnxruntime")
    given = models.with_quantization(given, precision=precision, provider=provider)
    return models.with_gates(given, Gates(max_drop=0.001)) if provider else given


def mirrored(folder: Path, store: Store, *records: Record) -> None:
    tier = connect(read_address(f"file://{folder}/mirror"))
    for record in records:
        transfer.push(tier, store, record)


def forged(folder: Path, store: Store) -> str:
    """Put other bytes under the key of the engine into the mirror; return their digest."""
    manifest = next(store.records("engine")).read(Manifest)
    model = onnx.load_model_from_string(store.read(manifest.sha256))
    for each in model.graph.initializer:
        array = numpy_helper.to_array(each)
        if array.dtype == np.float32:
            each.CopyFrom(numpy_helper.from_array(array * 0, each.name))
    evil = Store.open(str(folder / "evil"))
    blob = evil.put_bytes("engine", model.SerializeToString())
    manifest = msgspec.structs.replace(manifest, sha256=blob.sha256, bytes=blob.bytes)
    record = make_record("engine", manifest.key, manifest.preimage, manifest, (blob,))
    mirrored(folder, evil, evil.put(record), put_plan(evil, manifest))
    return blob.sha256


def with_mirror(folder: Path) -> str:
    return f"{folder}/local,file://{folder}/mirror"


def unsigned(report: Report) -> list[str]:
    return [each.text for each in report.findings if each.stage == "sign"]


def test_what_a_mirror_has_for_a_key_is_not_signed(folder: Path, elsewhere: Store) -> None:
    evil = forged(folder, elsewhere)
    run("keys", "trust", "nightly")
    report = trtbuild.build(recipe(folder), with_mirror(folder))
    assert [engine.sha256 for engine in report.engines] == [evil]
    (text,) = unsigned(report)
    assert "was not built by this user on this machine" in text
    assert statements(Store.open(str(folder / "local")), evil) == ()
    with pytest.raises(TrustError) as caught:
        trtbuild.load(evil, folder / "local")
    assert caught.value.code == "T17"
    (again,) = unsigned(trtbuild.build(recipe(folder), with_mirror(folder)))
    assert again == text, "a full hit says so too"


def test_a_report_of_a_mirror_is_no_evidence_for_an_engine_of_a_mirror(
    folder: Path, elsewhere: Store
) -> None:
    old = next(elsewhere.records("engine")).read(Manifest).sha256
    evil = forged(folder, elsewhere)
    for record in elsewhere.records("report"):
        preimage = json.loads(bytes(record.preimage).decode().replace(old, evil))
        value, key = msgspec.json.decode(record.value), digest("report/v1", preimage)
        mirrored(folder, elsewhere, make_record("report", key, preimage, value))
    with pytest.raises(TrustError, match="T17"):  # it would have to be run
        trtbuild.build(recipe(folder, provider="data.npz"), with_mirror(folder))


def flattering(record: Record) -> Record:
    """Return a report that claims more than was measured."""
    value = msgspec.json.decode(record.value)
    if "samples" in value:
        value["samples"] = 999
    return make_record("report", record.key, json.loads(bytes(record.preimage)), value)


def test_who_signs_measures_what_a_mirror_says_was_measured(
    folder: Path, elsewhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrored(folder, elsewhere, *map(flattering, elsewhere.records("report")))
    given = recipe(folder, provider="data.npz")
    with monkeypatch.context() as patch:
        patch.setenv("TRTBUILD_SIGNING_KEY", "")
        believed = trtbuild.build(given, with_mirror(folder))
    assert [engine.verification.samples for engine in believed.engines] == [999]
    report = trtbuild.build(given, with_mirror(folder))
    assert [engine.verification.samples for engine in report.engines] == [8]
    assert unsigned(report) == []
    assert [each.name for each in report.engines[0].signatures] == ["nightly"]
    assert trtbuild.build(given, with_mirror(folder)).full_cache_hit


def test_what_was_measured_before_there_was_a_key_is_not_measured_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = recipe(folder, provider="data.npz")
    with monkeypatch.context() as patch:
        patch.setenv("TRTBUILD_SIGNING_KEY", "")
        trtbuild.build(given, folder / "local")
    report = trtbuild.build(given, folder / "local")
    assert report.full_cache_hit
    assert [each.name for each in report.engines[0].signatures] == ["nightly"]


def test_what_a_trusted_builder_signed_elsewhere_is_signed_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("keys", "generate", "other")
    with monkeypatch.context() as patch:
        patch.setenv("TRTBUILD_STATE", str(folder / "elsewhere-state"))
        patch.setenv("TRTBUILD_SIGNING_KEY", "other")
        trtbuild.build(recipe(folder), folder / "elsewhere")
    store = Store.open(str(folder / "elsewhere"))
    mirrored(folder, store, *store.records("engine"), *store.records("plan"))
    report = trtbuild.build(recipe(folder), with_mirror(folder))
    assert "no signature of it is trusted" in unsigned(report)[0]
    run("keys", "trust", "other")
    report = trtbuild.build(recipe(folder), with_mirror(folder))
    assert unsigned(report) == []
    assert {each.name for each in report.engines[0].signatures} == {"nightly", "other"}
    run("keys", "revoke", report.engines[0].sha256)
    for path in (folder / "local" / "v1" / "att" / report.engines[0].sha256).iterdir():
        path.unlink()
    report = trtbuild.build(recipe(folder), with_mirror(folder))
    assert "was revoked" in unsigned(report)[0]
    assert report.engines[0].signatures == ()


def test_who_signed_an_engine_renews_it_on_another_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trtbuild.build(recipe(folder), folder / "local")
    sha256 = first.engines[0].sha256
    before = statements(Store.open(str(folder / "local")), sha256)
    monkeypatch.setenv("TRTBUILD_STATE", str(folder / "new-state"))
    assert sign_report(Store.open(str(folder / "local")), first, signer("nightly", 900)) == ()
    assert len(statements(Store.open(str(folder / "local")), sha256)) > len(before)


def test_a_revoked_key_signs_nothing_more_and_the_report_says_so(folder: Path) -> None:
    run("keys", "trust", "nightly")
    run("keys", "revoke", "nightly", "--reason", "lost")
    report = trtbuild.build(recipe(folder), folder / "local")
    (text,) = unsigned(report)
    assert "the policy revokes the key 'nightly'" in text
    assert statements(Store.open(str(folder / "local")), report.engines[0].sha256) == ()
