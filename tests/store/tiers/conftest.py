"""Servers that all tests of a process share; each test takes a prefix of its own."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from tests.store.tiers import servers
from trtbuild.store.tiers.address import read_address
from trtbuild.store.tiers.connect import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.store.tiers.servers import Server
    from trtbuild.store.tiers.tier import Tier

KINDS = ("folder", "moto", "localbucket", "registry", "azurite")


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", servers.AZURE_ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", servers.AZURE_KEY)
    monkeypatch.setenv("DOCKER_CONFIG", "/nonexistent")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("TRTBUILD_OFFLINE", raising=False)


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def localbucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.localbucket(tmp_path_factory.mktemp("localbucket")) as server:
        yield server


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(params=KINDS)
def uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An empty tier of every kind, without options of policy."""
    place = f"t{secrets.token_hex(6)}"
    if request.param == "folder":
        return f"file://{tmp_path_factory.mktemp('share')}?"
    server: Server = request.getfixturevalue(request.param)
    if request.param == "registry":
        return f"oci://127.0.0.1:{server.port}/{place}/engines?"
    if request.param == "azurite":
        endpoint = f"http://127.0.0.1:{server.port}/{servers.AZURE_ACCOUNT}"
        return f"az://{servers.BUCKET}/{place}?endpoint={endpoint}"
    return server.uri(place)


@pytest.fixture
def tier(uri: str) -> Tier:
    return connect(read_address(uri))
