"""What a URI of a store says, and which are refused."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from trtbuild.cli.installation import store_check, tier_checks
from trtbuild.errors import StoreError, UsageError
from trtbuild.store.location import locate
from trtbuild.store.tiers.address import read_address
from trtbuild.store.tiers.connect import connect
from trtbuild.store.tiers.tier import TierError


def test_a_list_begins_with_the_local_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    both = locate("/data/engines, s3://bucket/prefix?write=yes,/mnt/share")
    assert both.root == Path("/data/engines")
    assert both.remotes == ("s3://bucket/prefix?write=yes", "/mnt/share")
    alone = locate("gs://bucket/prefix")
    assert alone.root == Path("/cache/trtbuild")
    assert alone.remotes == ("gs://bucket/prefix",)
    monkeypatch.setenv("TRTBUILD_STORE", "/data,oci://host/engines")
    assert locate("").remotes == ("oci://host/engines",)
    assert locate("").uri == "/data,oci://host/engines"


@pytest.mark.parametrize(
    ("uri", "scheme", "place", "write"),
    [
        ("/mnt/share?write=yes", "file", "/mnt/share", True),
        ("file:///mnt/a%2Cb", "file", "/mnt/a,b", False),
        ("s3://bucket/a/b?endpoint=http://h:9&region=x", "s3", "s3://bucket/a/b", False),
        ("az://container/prefix?write=no", "az", "az://container/prefix", False),
        ("oci://host:5000/team/engines?http=yes", "oci", "oci://host:5000/team/engines", False),
    ],
)
def test_an_address_is_a_place_and_options(
    uri: str,
    scheme: str,
    place: str,
    write: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    found = read_address(uri)
    assert (found.scheme, found.place, found.write) == (scheme, place, write)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("ftp://host/x", "no tier is called"),
        ("s3://bucket/x?wirte=yes", "option 'wirte'"),
        ("s3://bucket/x?write=maybe", "expected yes or no"),
        ("s3://bucket/x?write=yes&write=no", "once each"),
        ("gs://bucket/x?region=here", "option 'region'"),
        ("oci://me:secret@host/x", "give credentials by the environment"),
        ("s3:///x", "expected s3://NAME"),
        ("s3://bucket/x?aws_secret_access_key=secret", "option 'aws_secret_access_key'"),
        ("s3://bucket/x?write=secret", "expected yes or no"),
        ("s3://me:sec/secret@bucket/x", "give credentials by the environment"),
        ("ftp://me:secret@host/x?a=secret", "no tier is called"),
        ("s3://bucket/x?endpoint=http://me:secret@host", "option endpoint: has a user"),
        ("s3://bucket/x?endpoint=secret", "option endpoint: expected http"),
        ("s3:///x?region=secret", "expected s3://NAME"),
    ],
)
def test_what_an_address_cannot_mean_is_refused(uri: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        read_address(uri)
    assert "secret" not in str(caught.value).replace("aws_secret_access_key", "")


def test_a_login_in_the_environment_or_in_an_error_is_not_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:secret@127.0.0.1:9")
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL: has a user") as caught:
        connect(read_address("s3://bucket/x"))
    assert "secret" not in str(caught.value)
    assert (
        str(TierError("GET https://me:secret@host/x?y: lost")) == "GET https://…@host/x?y: lost"
    )


class Forbidding(BaseHTTPRequestHandler):
    """A server that refuses every credential."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_credentials_that_are_wrong_or_absent_are_said_to_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with HTTPServer(("127.0.0.1", 0), Forbidding) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tier = connect(
            read_address(f"s3://bucket/x?endpoint=http://127.0.0.1:{server.server_port}")
        )
        for ask in (tier.names, tier.size, tier.peek):
            with pytest.raises(TierError, match="Check the credentials"):
                ask("v1/ac/engine/")
        server.shutdown()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TierError, match=r"no credentials for it.*AWS_ACCESS_KEY_ID"):
        connect(read_address("s3://bucket/x")).names("v1/ac/engine/")


def test_doctor_says_no_password_of_a_uri() -> None:
    for uri in ("s3://me:secret@bucket", "s3://bucket?secret_key=secret", "ftp://a:secret@b"):
        checks = [*tier_checks(uri), store_check(f"/nonexistent/file,{uri}")]
        assert checks[0].state == "broken", uri
        assert "secret" not in repr(checks).replace("secret_key", ""), uri


def test_errors_end_a_run_in_ci_and_where_results_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CI", raising=False)
    plain = read_address("s3://bucket/x")
    assert (plain.fails, plain.write_fails) == (False, True)
    said = read_address("s3://bucket/x?on_error=warn")
    monkeypatch.setenv("CI", "true")
    assert (plain.fails, plain.write_fails) == (True, True)
    assert (said.fails, said.write_fails) == (False, False)
