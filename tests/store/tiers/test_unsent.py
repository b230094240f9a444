"""What a tier did not take is not forgotten: it goes there first, or the next command fails."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from tests.store.engines import engine_key, put_engine
from tests.store.tiers.liar import lying
from trtbuild.cli.application import app
from trtbuild.errors import StoreError
from trtbuild.store import Store
from trtbuild.store.tiers.address import read_address
from trtbuild.store.tiers.connect import connect
from trtbuild.store.tiers.names import record_name
from trtbuild.store.tiers.remote import pull_engine
from trtbuild.store.tiers.transfer import push

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.store.tiers.liar import Liar
    from trtbuild.store import Record

ENGINE = engine_key("sm_89", 3)


@pytest.fixture
def liar(request: pytest.FixtureRequest) -> Iterator[Liar]:
    with lying(request.getfixturevalue("moto").port) as server:
        server.methods = ("PUT",)
        server.where, server.fault = "/v1/ac/engine/", "403"
        yield server


@pytest.fixture
def uri(liar: Liar) -> str:
    port = liar.server_address[1]
    place = f"t{secrets.token_hex(6)}"
    return f"s3://engines/{place}?endpoint=http://127.0.0.1:{port}&region=us-east-1"


def make(folder: Path, uri: str, options: str = "&write=yes") -> Record:
    """Build an engine, or find it, as a command does."""
    store = Store.open(f"{folder},{uri}{options}").settled()
    return put_engine(store, ENGINE, b"engine")


def test_the_command_after_a_failed_upload_sends_what_is_missing(
    liar: Liar, uri: str, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=r"refused: .*command again.* cache push --all"):
        make(tmp_path / "first", uri)
    with pytest.raises(StoreError, match="cache push --all --to s3://engines"):
        make(tmp_path / "first", uri)
    tier = connect(read_address(uri))
    assert list(tier.names("v1/ac/")) == [], "a plan without its engine"
    liar.fault = ""
    made = make(tmp_path / "first", uri)
    second = Store.open(str(tmp_path / "second"))
    assert pull_engine(tier, second, made.blobs[0].sha256[:12], lambda _: None) == made
    liar.seen.clear()
    make(tmp_path / "first", uri)
    assert liar.seen == [], "sent again what is there"


def test_where_errors_are_warnings_the_plan_waits_for_its_engine(
    liar: Liar, uri: str, tmp_path: Path
) -> None:
    made = make(tmp_path / "first", uri, "&write=yes&on_error=warn")
    tier = connect(read_address(uri))
    assert list(tier.names("v1/ac/")) == []
    liar.fault = ""
    assert make(tmp_path / "first", uri, "&write=yes&on_error=warn") == made
    names = list(tier.names("v1/ac/"))
    assert [name.split("/")[2] for name in names] == ["engine", "plan"]


def test_who_only_reads_is_not_held_up_by_what_is_unsent(
    liar: Liar, uri: str, tmp_path: Path
) -> None:
    with pytest.raises(StoreError):
        make(tmp_path / "first", uri)
    liar.seen.clear()
    assert make(tmp_path / "first", uri, "").key == ENGINE.digest
    assert liar.seen == []


@pytest.mark.parametrize("options", ["&write=yes", "&write=yes&on_error=warn"])
def test_another_hosts_engine_is_left_and_no_plan_names_it_by_our_bytes(
    liar: Liar, uri: str, options: str, tmp_path: Path
) -> None:
    with contextlib.suppress(StoreError):
        make(tmp_path / "first", uri, options)
    liar.fault = ""
    other = Store.open(str(tmp_path / "other"))
    tier = connect(read_address(uri))
    push(tier, other, put_engine(other, ENGINE, b"another"))
    store = Store.open(f"{tmp_path / 'first'},{uri}&write=yes").settled()
    assert any("another host was first" in each.reason for each in store.incidents)
    assert store.read(store.get("engine", ENGINE.digest).blobs[0].sha256) == b"engine"  # type: ignore[union-attr]  # it was put above
    ours = make(tmp_path / "first", uri).blobs[0].sha256
    assert tier.size(record_name("plan", ours)) is None


def test_a_push_by_hand_settles_it_too(liar: Liar, uri: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        make(tmp_path / "first", uri)
    liar.fault = ""
    done = CliRunner().invoke(
        app,
        [
            "cache",
            "push",
            "--all",
            "--unsigned",
            "--to",
            uri,
            "--store",
            str(tmp_path / "first"),
        ],
    )
    assert done.exit_code == 0, done.output
    liar.seen.clear()
    Store.open(f"{tmp_path / 'first'},{uri}&write=yes").settled()
    assert liar.seen == []
