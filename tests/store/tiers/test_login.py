"""How a registry lets us in: docker's login file, and a token from whom the registry names."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from trtbuild.store.tiers.address import read_address
from trtbuild.store.tiers.connect import connect
from trtbuild.store.tiers.login import authorization
from trtbuild.store.tiers.tier import TierError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = base64.b64encode(b"me:secret").decode()


class Guarded(ThreadingHTTPServer):
    """A registry without content that wants a token from its own /token, or a password."""

    daemon_threads = True
    scheme = "Bearer"


class _Handler(BaseHTTPRequestHandler):
    server: Guarded

    def do_HEAD(self) -> None:
        port = self.server.server_address[1]
        given = self.headers.get("Authorization")
        wanted = "Bearer t0ken" if self.server.scheme == "Bearer" else f"Basic {SECRET}"
        self.send_response_only(404 if given == wanted else 401)
        realm = f'{self.server.scheme} realm="http://127.0.0.1:{port}/token",service="r"'
        scope = ',scope="repository:team/engines:pull"'
        self.send_header("WWW-Authenticate", realm + scope)
        self.end_headers()

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        allowed = self.headers.get("Authorization") == f"Basic {SECRET}" and query == {
            "service": ["r"],
            "scope": ["repository:team/engines:pull"],
        }
        body = json.dumps({"token": "t0ken"}).encode() if allowed else b"who are you?"
        self.send_response_only(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:  # noqa: ANN401  the base class has it so
        """Say nothing."""


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    server = Guarded(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def log_in(folder: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.joinpath("config.json").write_text(
        json.dumps({"auths": {host: {"auth": SECRET}}, "HttpHeaders": {}})
    )
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))


@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
def test_a_login_of_docker_is_used(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    guarded.scheme = scheme
    host = f"127.0.0.1:{guarded.server_address[1]}"
    tier = connect(read_address(f"oci://{host}/team/engines"))
    name = "v1/cas/sha256/00/" + "0" * 64
    with pytest.raises(TierError, match="docker login"):
        tier.size(name)
    log_in(tmp_path, host, monkeypatch)
    assert tier.size(name) is None


def test_a_password_goes_to_no_token_server_without_encryption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(tmp_path, "registry.example", monkeypatch)
    with pytest.raises(TierError, match="not encrypted"):
        authorization("registry.example", 'Bearer realm="http://evil.example/token"')


def test_a_login_file_that_is_broken_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with pytest.raises(TierError, match=r"config\.json"):
        authorization("registry.example", "Basic")
