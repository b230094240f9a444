"""How to be let into a registry: the file of ``docker login``, and tokens.

A registry that wants credentials answers 401 and says which kind, and from whom to get a token
(distribution spec, "Token Authentication Specification").
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import msgspec

from trtbuild.store.tiers.http import Question, ask
from trtbuild.store.tiers.tier import LOOKUP_S, TierError

_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_TOKEN_LIMIT_BYTES = 1 << 20
_FOUND = 200
_HELPER = re.compile(r"[A-Za-z0-9._-]{1,64}")


class _Login(msgspec.Struct, frozen=True):
    """One entry of ``auths``; docker writes more fields, which are not read."""

    auth: str = ""


class _Docker(msgspec.Struct, frozen=True, rename="camel"):
    """``~/.docker/config.json``, as far as it is read."""

    auths: dict[str, _Login] = {}
    cred_helpers: dict[str, str] = {}
    creds_store: str = ""


class _Helped(msgspec.Struct, frozen=True, rename="pascal"):
    """What a credential helper prints."""

    username: str
    secret: str


class _Token(msgspec.Struct, frozen=True):
    """What a token server answers; one of the two is there."""

    token: str = ""
    access_token: str = ""


def authorization(host: str, challenge: str) -> str:
    """Return the Authorization header that ``challenge`` (a WWW-Authenticate) asks for.

    The empty string where nobody is logged in to ``host`` and a password is wanted.

    Raises:
        TierError: the token server gives none, or the login file cannot be read.
    """
    basic = _basic(host)
    scheme, _, rest = challenge.partition(" ")
    if scheme.lower() != "bearer":
        return basic
    parameters = dict(_PARAMETER.findall(rest))
    realm = parameters.pop("realm", "")
    if urlsplit(realm).scheme not in ("http", "https"):
        raise TierError(f"oci://{host}: names no token server. Check the registry's setup")
    if basic and urlsplit(realm).scheme == "http" and not is_loopback(urlsplit(realm).netloc):
        raise TierError(
            f"oci://{host}: its token server {realm} is not encrypted: the password was "
            f"not sent"
        )
    wanted = {name: parameters[name] for name in ("service", "scope") if name in parameters}
    headers = {"Authorization": basic} if basic else {}
    answer = ask(Question(method="GET", url=f"{realm}?{urlencode(wanted)}", headers=headers))
    if answer.status != _FOUND:
        raise TierError(
            f"oci://{host}: no token: {answer.reason()}. Log in with: docker login {host}"
        )
    try:
        found = msgspec.json.decode(answer.read(_TOKEN_LIMIT_BYTES), type=_Token)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TierError(f"oci://{host}: token server {realm}: {error}") from error
    return f"Bearer {found.token or found.access_token}"


def is_loopback(netloc: str) -> bool:
    """Tell whether a host is this machine, where docker too needs no TLS."""
    host = urlsplit(f"//{netloc}").hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _basic(host: str) -> str:
    folder = os.environ.get("DOCKER_CONFIG")
    path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_Docker)
    except FileNotFoundError:
        return ""
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TierError(f"{path}: {error}. Repair it, or log in again: docker login") from error
    helper = config.cred_helpers.get(host, "")
    login = config.auths.get(host) or config.auths.get(f"https://{host}")
    if not helper and login is not None and login.auth:
        try:
            base64.b64decode(login.auth, validate=True)
        except binascii.Error as error:
            raise TierError(f"{path}: auth of {host}: {error}. Log in again") from error
        return f"Basic {login.auth}"
    helper = helper or (config.creds_store if login is not None else "")
    return _asked(helper, host) if helper else ""


def _asked(helper: str, host: str) -> str:
    """Ask ``docker-credential-NAME``, as docker does."""
    if not _HELPER.fullmatch(helper):
        raise TierError(f"credential helper {helper!r}: expected a plain name")
    command = f"docker-credential-{helper}"
    try:
        done = subprocess.run(  # noqa: S603  the user's own helper, named by docker's settings
            [command, "get"],
            input=host.encode(),
            capture_output=True,
            timeout=LOOKUP_S,
            check=True,
        )
        found = msgspec.json.decode(done.stdout, type=_Helped)
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
        raise TierError(f"{command}: {error}. Log in again: docker login {host}") from error
    pair = f"{found.username}:{found.secret}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"
