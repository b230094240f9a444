"""What a URI of a store says, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtbuild.errors import UsageError
from trtbuild.store.location import locate
from trtbuild.store.tiers.address import read_address


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
        ("gs://bucket/x?endpoint=http://h", "option 'endpoint'"),
        ("oci://me:secret@host/x", "give credentials by the environment"),
        ("s3:///x", "expected s3://NAME"),
    ],
)
def test_what_an_address_cannot_mean_is_refused(uri: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        read_address(uri)
    assert "secret" not in str(caught.value)


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
