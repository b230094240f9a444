"""What an engine needs beside its bytes comes from the store by digest, or it is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.store.engines import engine_key, put_engine
from trtbuild.backends.session import NOTHING, Attached
from trtbuild.engine import Manifest
from trtbuild.errors import StoreError, TrustError
from trtbuild.runtime.attached import attached
from trtbuild.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.engine import Setting


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def manifest(store: Store, weights_sha256: str = "", **settings: Setting) -> Manifest:
    key = msgspec.structs.replace(
        engine_key("sm_89", 3), settings=tuple(sorted(settings.items()))
    )
    made = put_engine(store, key, b"engine").read(Manifest)
    return msgspec.structs.replace(made, weights_sha256=weights_sha256)


def test_most_engines_need_nothing(store: Store) -> None:
    assert attached(store, manifest(store)) == NOTHING


def test_an_engine_that_streams_its_weights_says_so(store: Store) -> None:
    assert attached(store, manifest(store, weight_streaming=True)).streams_weights
    assert not attached(store, manifest(store, weight_streaming=False)).streams_weights


def test_libraries_come_in_the_order_of_the_key(store: Store) -> None:
    digests = ",".join(
        store.put_bytes(f"plugin-{i}", text).sha256 for i, text in enumerate((b"one", b"two"))
    )
    found = attached(store, manifest(store, plugins=digests))
    assert found == Attached(plugins=(b"one", b"two"), plugin_digests=digests)


def test_a_changed_library_is_refused(store: Store) -> None:
    sha256 = store.put_bytes("plugin-0", b"library").sha256
    path = store.path(sha256)
    path.chmod(0o600)
    path.write_bytes(b"another")
    with pytest.raises(StoreError, match="quarantine"):
        attached(store, manifest(store, plugins=sha256))


def test_an_engine_without_weights_gets_those_of_its_manifest_or_is_refused(
    store: Store,
) -> None:
    sha256 = store.put_bytes("weights", b"network").sha256
    stripped = manifest(store, sha256, strip_plan=True)
    assert attached(store, stripped).weights == b"network"
    with pytest.raises(TrustError, match="stored without its weights"):
        attached(store, manifest(store, strip_plan=True))


def test_an_engine_for_dla_names_its_core(store: Store) -> None:
    assert attached(store, manifest(store, dla_core=1)) == Attached(dla_core=1)
