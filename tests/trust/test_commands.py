"""Keys, promotion, lockfiles and first loads, as a user meets them."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import trtbuild
from tests.backends import bubblewrap
from tests.trust.commands import (
    demand_promoters,
    manifest_of,
    recipe,
    run,
    signed,
    works,
)
from trtbuild.engine import Manifest
from trtbuild.errors import TrtbuildError, TrustError
from trtbuild.pipeline import key_files
from trtbuild.runtime import admission, canary
from trtbuild.store import Store
from trtbuild.store.statements import statements
from trtbuild.trust import dsse

if TYPE_CHECKING:
    from trtbuild.engine import Manifest as ManifestType


def test_a_key_is_private_named_once_and_printed(place: Path) -> None:
    document = json.loads(run("keys", "generate", "nightly", "--json"))
    path = Path(document["private"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert document["public"] in run("keys", "list")
    assert "nightly" in run("keys", "generate", "nightly", code=2)
    path.chmod(0o640)
    assert "chmod 600" in run("promote", "123456", "--key", "nightly", code=2)
    assert place in path.parents


def test_a_passphrase_protects_a_key(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTBUILD_KEY_PASSPHRASE", "a long one")
    run("keys", "generate", "nightly")
    assert key_files.load_key("nightly").public.keyid == key_files.own_keys()["nightly"].keyid
    for wrong in ("", "another"):
        monkeypatch.setenv("TRTBUILD_KEY_PASSPHRASE", wrong)
        with pytest.raises(TrtbuildError, match="TRTBUILD_KEY_PASSPHRASE"):
            key_files.load_key("nightly")
    assert b"ENCRYPTED" in (place / "config/trtbuild/keys/nightly.key").read_bytes()


def test_sign_promote_lock_and_load(place: Path) -> None:
    engine = signed(place)
    demand_promoters(place)
    with pytest.raises(TrustError, match="promoter") as caught:
        trtbuild.load(engine)
    assert caught.value.code == "T04"
    promoted = run("promote", engine, "--key", "release")
    assert "classifier" in promoted
    assert "nightly, release" in run("lock")
    run("lock", "--check")
    session = trtbuild.load("classifier", lock="engines.lock")
    assert works(session)
    assert session.admission is not None
    assert (session.admission.model, session.admission.promoters) == (
        "classifier",
        ("release",),
    )
    assert 'signed="yes"' in session.metrics()
    shown = run("cache", "show", engine)
    assert "signed by nightly (builder" in shown
    assert "release (promoter" in shown
    document = json.loads(run("cache", "show", engine, "--json"))
    assert [each["holds"] for each in document["signatures"]] == [True, True]


def test_signing_again_adds_nothing_and_promoting_again_a_later_release(place: Path) -> None:
    engine = signed(place)
    store = Store.open("")
    before = statements(store, engine)
    assert len(before) == 3
    run("engine", recipe(place), "-q")
    assert statements(store, engine) == before
    numbers = [
        json.loads(run("promote", engine, "--key", "release", "--json"))["release"]["seq"]
        for _ in range(3)
    ]
    assert numbers == sorted(set(numbers))


def test_a_release_that_was_overtaken_is_not_loaded_again(place: Path) -> None:
    engine = signed(place)
    store = Store.open("")
    old = {path: path.read_bytes() for path in (store.top / "att" / engine).iterdir()}
    run("promote", engine, "--key", "release")
    trtbuild.load(engine)
    for path in (store.top / "att" / engine).iterdir():
        if path not in old:
            path.unlink()
    with pytest.raises(TrustError) as caught:
        trtbuild.load(engine)
    assert caught.value.code == "T06"
    run("promote", engine, "--key", "release")
    assert works(trtbuild.load(engine))


def test_two_promoters_sign_one_release(place: Path) -> None:
    engine = signed(place)
    run("keys", "generate", "second")
    run("keys", "trust", "second", "--role", "promoter")
    demand_promoters(place)
    path = place / "config" / "trtbuild" / "policy.toml"
    path.write_text(path.read_text().replace("promoters = 1", "promoters = 2"))
    assert "promotion to cosign" in run(
        "promote", engine, "--key", "second", "--cosign", code=2
    )
    run("promote", engine, "--key", "release")
    with pytest.raises(TrustError, match="T04"):
        trtbuild.load(engine)
    run("promote", engine, "--key", "second", "--cosign")
    assert works(trtbuild.load(engine))


def test_what_is_revoked_is_loaded_no_more(place: Path) -> None:
    engine = signed(place)
    assert works(trtbuild.load(engine))
    run("lock")
    run("keys", "revoke", "nightly", "--reason", "laptop lost")
    with pytest.raises(TrustError, match="laptop lost") as caught:
        trtbuild.load(engine)
    assert caught.value.code == "T16"
    assert "REFUSED T16" in run("lock", "--check", code=6)
    assert "REVOKED" in run("keys", "list")
    run("keys", "revoke", engine)
    with pytest.raises(TrustError, match=r"engine .* was revoked"):
        trtbuild.load(engine)


def test_nobody_promotes_what_no_trusted_builder_signed(place: Path) -> None:
    run("keys", "generate", "release")
    run("keys", "trust", "release", "--role", "promoter")
    engine = manifest_of(place / "store").sha256
    assert "T17" in run("promote", engine, "--key", "release", code=6)


def test_a_key_that_is_trusted_already_is_not_added_again(place: Path) -> None:
    run("keys", "generate", "nightly")
    run("keys", "trust", "nightly", "--model", "digits-*")
    assert "has one role" in run("keys", "trust", "nightly", "--role", "promoter", code=2)
    assert "builder of digits-*" in run("keys", "list")
    assert "--role" in run("keys", "trust", "nightly", "--role", "king", code=2)
    text = (place / "config/trtbuild/policy.toml").read_text()
    assert text.startswith("# Which engines")


@pytest.mark.parametrize("text", ["", 'schema = 1\nunsigned = "local"\n'])
def test_unsigned_engines_are_loaded_visibly_and_where_they_were_built_alone(
    place: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    engine = manifest_of(place / "store").sha256
    if text:
        (place / "config" / "trtbuild").mkdir(parents=True)
        (place / "config" / "trtbuild" / "policy.toml").write_text(text)
    with caplog.at_level(logging.WARNING, "trtbuild.trust"):
        session = trtbuild.load(engine)
        assert works(session)
        trtbuild.load(engine)
    assert [record.name for record in caplog.records] == ["trtbuild.trust"] * 2
    assert engine[:12] in caplog.text
    assert session.admission is not None
    assert not session.admission.signed
    assert 'signed="no"' in session.metrics()
    assert "unsigned" in run("cache", "show", engine)
    assert ("policy.toml" if text else "developer") in run("doctor")
    shutil.rmtree(place / "state" / "made")  # as on another machine
    with pytest.raises(TrustError) as caught:
        trtbuild.load(engine)
    assert caught.value.code == "T17"
    with pytest.raises(TrustError, match="T17"):
        admission.admit_measuring(Store.open(""), manifest_of(place / "store"))


def test_an_unsigned_engine_is_locked_only_by_name(place: Path) -> None:
    engine = manifest_of(place / "store").sha256
    assert "nothing to pin" in run("lock", code=6)
    assert "unsigned" in run("lock", engine)
    assert works(trtbuild.load("classifier", lock="engines.lock"))
    Path("engines.lock").write_text(Path("engines.lock").read_text().replace(engine, "a" * 64))
    assert "REFUSED" in run("lock", "--check", code=6)
    with pytest.raises(TrustError, match="T02"):
        trtbuild.load(engine, lock="engines.lock")


def test_a_recipe_whose_name_cannot_be_signed_is_refused_before_any_work(place: Path) -> None:
    run("keys", "generate", "nightly", "--use")
    odd = Path(recipe(place)).rename(place / "my model.toml")
    assert "my model" in run("engine", str(odd), "-q", code=2)


def test_bundles_are_written_one_per_signature(place: Path) -> None:
    engine = signed(place)
    written = run("keys", "export-bundle", engine, "--out", "bundles").split()
    kinds = set()
    for path in written:
        envelope = json.loads(Path(path).read_bytes())["dsseEnvelope"]
        kinds.add(envelope["payloadType"])
    assert len(written) == 3
    assert kinds == {dsse.PAYLOAD_TYPE}


def unary(place: Path, operator: str) -> ManifestType:
    """Build an engine of one operator and return its manifest."""
    folder = place / operator
    folder.mkdir()
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("Add", ["n", "c"], ["s"]),
        helper.make_node(operator, ["s"], ["y"]),
    ]
    minus = onnx.numpy_helper.from_array(np.full((1, 4), -1, np.float32), "c")
    graph = helper.make_graph(nodes, operator, values[:1], values[1:], [minus])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "m.onnx")
    report = trtbuild.build(_recipe_of(folder / "m.onnx"), place / "store")
    record = Store.open("").get("engine", report.engines[0].key)
    assert record is not None
    return record.read(Manifest)


def _recipe_of(path: Path) -> str:
    text = f'[source]\nonnx = "{path}"\n[quantization]\nprecision = "fp32"\n'
    path.with_suffix(".toml").write_text(text + '[build]\ntargets = ["onnxruntime"]\n')
    return str(path.with_suffix(".toml"))


def test_a_first_load_looks_at_what_the_engine_computes(place: Path) -> None:
    fine, broken = unary(place, "Relu"), unary(place, "Sqrt")
    trtbuild.load(fine.sha256)
    with pytest.raises(TrustError, match="not finite") as caught:
        trtbuild.load(broken.sha256)
    assert caught.value.code == "T15"
    marks = list((place / "state" / "canary").iterdir())
    assert len(marks) == 1, "what failed must be tried again, what loaded must not"


def test_a_first_load_happens_once_and_has_a_limit(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(place / "store")
    data = Store.open("").read(manifest.sha256)
    with pytest.raises(TrustError, match="not done after"):
        canary.require(manifest, data, 0)
    canary.require(manifest, data, 60)
    monkeypatch.setattr("sys.executable", "/bin/false")
    canary.require(manifest, data, 60)
    other = msgspec.structs.replace(manifest, key="0" * 64)
    with pytest.raises(TrustError, match="ended with 1"):
        canary.require(other, data, 60)


def test_a_first_load_is_confined(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = manifest_of(place / "store")
    data = Store.open("").read(manifest.sha256)
    bubblewrap.require(monkeypatch)
    canary.require(manifest, data, 60)
    other = msgspec.structs.replace(manifest, key="0" * 64)
    secret = place / "secret"
    secret.touch()
    interpreter = place / "python" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text(f"#!/bin/sh\n[ -e {secret} ] && exit 3\nkill -ABRT $$\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(interpreter))
    with pytest.raises(TrustError, match="died by SIGABRT"):
        canary.require(other, data, 60)


def test_a_policy_by_environment_is_in_force(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = manifest_of(place / "store").sha256
    monkeypatch.setenv("TRTBUILD_POLICY", str(place / "missing.toml"))
    with pytest.raises(TrustError, match="T01"):
        trtbuild.load(engine)
    (place / "strict.toml").write_text("schema = 1\n")
    monkeypatch.setenv("TRTBUILD_POLICY", str(place / "strict.toml"))
    with pytest.raises(TrustError, match="T17"):
        trtbuild.load(engine)
    assert works(trtbuild.load(engine, policy="developer"))
    assert os.environ["TRTBUILD_POLICY"] not in run("doctor", "--json").split()
