"""An engine's bytes are looked at from the outside, whatever a policy allows of others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.trust.attacks.cases import rekeyed
from tests.trust.attacks.engines import program
from tests.trust.forge import POLICY, forge
from trtbuild.errors import TrustError
from trtbuild.runtime import admission
from trtbuild.runtime.admission import Terms, admit
from trtbuild.store.statements import put_statement

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.engine import Manifest
    from trtbuild.store import Store


def forged(place: Path, extra: bytes = b"") -> tuple[Store, Manifest, Terms]:
    """Return a store with a signed engine, and a policy that allows host code."""
    f = forge(place / "store")
    if extra:
        data = f.store.read(f.manifest.sha256) + extra
        f.put(msgspec.structs.replace(f.manifest, preimage=rekeyed(f)), data)
    for envelope in f.attempt().envelopes:
        put_statement(f.store, f.candidate.sha256, envelope)
    policy = place / "policy.toml"
    policy.write_text(POLICY.replace("schema = 1\n", "schema = 1\nhost_code = true\n"))
    return f.store, f.manifest, Terms(policy=str(policy))


def test_host_code_is_allowed_to_engines_that_were_built_to_have_it_only(place: Path) -> None:
    store, manifest, terms = forged(place, program(62))
    with pytest.raises(TrustError, match="contain a program for x86-64") as caught:
        admit(store, manifest.key, terms)
    assert caught.value.code == "T14"


def compatible(manifest: Manifest) -> Manifest:
    target = msgspec.structs.replace(manifest.preimage.target, backend="tensorrt")
    settings = (("version_compatible", True),)
    preimage = msgspec.structs.replace(manifest.preimage, target=target, settings=settings)
    return msgspec.structs.replace(manifest, preimage=preimage)


def test_a_version_compatible_engine_may_bring_its_runtime(place: Path) -> None:
    store, manifest, _ = forged(place)
    record = store.get("engine", manifest.key)
    assert record is not None
    verified = admission._verified_bytes  # noqa: SLF001  no GPU here to admit one as a whole
    data = store.read(manifest.sha256) + program(62)
    blob = store.put_bytes("engine", data)
    changed = msgspec.structs.replace(manifest, sha256=blob.sha256, bytes=blob.bytes)
    record = msgspec.structs.replace(record, blobs=(blob,))
    assert verified(store, record, compatible(changed), host_code=True) == data
    for one, allowed in ((compatible(changed), False), (changed, True)):
        with pytest.raises(TrustError, match="T14"):
            verified(store, record, one, host_code=allowed)


def test_the_version_in_a_header_is_that_of_the_manifest(place: Path) -> None:
    from tests.backends.test_trt_plan import plan  # noqa: PLC0415  the header is made there

    problem = admission._header_problem  # noqa: SLF001  as above
    _, manifest, _ = forged(place)
    one = compatible(manifest)
    assert problem(one, plan()) == ""
    fixed = msgspec.structs.replace(one.preimage, settings=())
    assert "says version 10.13.3.9" in problem(
        msgspec.structs.replace(one, preimage=fixed), plan()
    )


def test_no_more_is_read_than_the_record_says(place: Path) -> None:
    store, manifest, _ = forged(place)
    path = store.path(manifest.sha256)
    lookup = store.get("engine", manifest.key)
    assert lookup is not None
    path.chmod(0o600)
    os.truncate(path, 1 << 40)
    with pytest.raises(TrustError, match=f"at most {manifest.bytes} are read") as caught:
        admission._verified_bytes(store, lookup, manifest, host_code=False)  # noqa: SLF001  as above
    assert caught.value.code == "T13"
    assert not path.exists(), "set aside"
