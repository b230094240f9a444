"""What a tier's URI says: ``s3://bucket/prefix?write=yes&on_error=warn``.

=============================  =============================================================
``/mnt/share``, ``file:///…``  a folder that several machines mount
``s3://bucket/prefix``         S3 and what speaks it; ``endpoint=http://…``, ``region=…``
``gs://bucket/prefix``         Google Cloud Storage; ``endpoint=``
``az://container/prefix``      Azure Blob Storage; ``endpoint=``
``oci://host[:port]/name``     an OCI registry; ``http=yes`` without TLS
=============================  =============================================================

All take ``write=yes|no`` (default no) and ``on_error=fail|warn`` (what happens when the tier
cannot answer; default: fail where it is written and in CI, else warn).
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from trtbuild.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMES = ("file", "s3", "gs", "az", "oci")
_OF_ALL = {"write": ("yes", "no"), "on_error": ("fail", "warn")}
_OF_SCHEME: dict[str, tuple[str, ...]] = {
    "s3": ("endpoint", "region"),
    "gs": ("endpoint",),
    "az": ("endpoint",),
    "oci": ("http",),
}
_CHOICES = _OF_ALL | {"http": ("yes", "no")}
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)", re.DOTALL)
_LOGIN = re.compile(r"://[^\s?#]*@")


@dataclass(frozen=True, kw_only=True)
class Address:
    """One tier: ``place`` is its URI or folder without options, ``shown`` is for people."""

    scheme: str
    place: str
    options: Mapping[str, str]

    @property
    def shown(self) -> str:
        """What messages call it."""
        return self.place

    @property
    def identity(self) -> str:
        """16 digits that tell its place from others, whatever this machine may do there."""
        place = f"{self.place}\n{self.options.get('endpoint', '')}"
        return hashlib.sha256(place.encode()).hexdigest()[:16]

    @property
    def write(self) -> bool:
        """Whether this machine writes to it."""
        return self.options.get("write") == "yes"

    @property
    def is_network(self) -> bool:
        """Whether asking it opens a socket."""
        return self.scheme != "file"

    @property
    def fails(self) -> bool:
        """Whether a question that it cannot answer ends the run."""
        return self.options.get("on_error", "fail" if in_ci() else "warn") == "fail"

    @property
    def write_fails(self) -> bool:
        """Whether a result that it does not take ends the run."""
        return self.options.get("on_error", "fail") == "fail"


def in_ci() -> bool:
    """Tell whether this is a CI job: nobody reads its warnings."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false", "no")


def read_address(uri: str) -> Address:
    """Return what a tier's URI says.

    Raises:
        UsageError: the scheme or an option is unknown, or a password is in it.
    """
    found = _SCHEME.fullmatch(uri)
    scheme = found[1].lower() if found else "file"
    if scheme not in SCHEMES:
        raise UsageError(
            f"store {shown_uri(uri)}: no tier is called {scheme}://. Give a folder, "
            f"s3://, gs://, az:// or oci://"
        )
    body, _, query = uri.partition("?")
    options = _options(uri, scheme, query)
    if scheme == "file":
        path = Path(unquote(found[2].partition("?")[0]) if found else body)
        return Address(scheme=scheme, place=str(path.expanduser().absolute()), options=options)
    parts = urlsplit(body)
    # A secret key may have a slash, which ends the place of a login.
    if "@" in parts.netloc or (":" in parts.netloc and "@" in parts.path):
        raise UsageError(
            f"store {shown_uri(uri)}: a URI is in logs and process lists: give credentials by "
            f"the environment or docker login"
        )
    if not parts.netloc or parts.fragment:
        raise UsageError(f"store {shown_uri(uri)}: expected {scheme}://NAME/PREFIX")
    return Address(
        scheme=scheme, place=f"{scheme}://{body[len(scheme) + 3 :]}", options=options
    )


def shown_uri(uri: str) -> str:
    """Return what a message may say of a URI that may be wrong: no option, no login.

    Values of options are never said: people put passwords there.
    """
    return _LOGIN.sub("://…@", uri.partition("?")[0])


def check_endpoint(label: str, endpoint: str) -> None:
    """Refuse an endpoint that is no plain ``http(s)://HOST[:PORT]``; its text is never said.

    Raises:
        UsageError: it has a login, or is no such URL; ``label`` says where it stands.
    """
    if "@" in endpoint:
        raise UsageError(
            f"{label}: has a user or a password, and would be in logs: give credentials by "
            f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query:
        raise UsageError(f"{label}: expected http://HOST:PORT or https://HOST")


def _options(uri: str, scheme: str, query: str) -> dict[str, str]:
    known = (*_OF_ALL, *_OF_SCHEME.get(scheme, ()))
    label = f"store {shown_uri(uri)}: option"
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known or name in options:
            raise UsageError(f"{label} {name!r}: expected, once each, {', '.join(known)}")
        choices = _CHOICES.get(name)
        if choices and value not in choices:
            raise UsageError(f"{label} {name}: expected {' or '.join(choices)}")
        if name == "endpoint":
            check_endpoint(f"{label} {name}", value)
        options[name] = value
    return options
