"""HTTP for registries: time limits, retries, redirects that leak nothing, no cookies.

The standard library's client, so that nothing has to be installed; proxies are taken from the
environment.
"""

from __future__ import annotations

import http.client
import random
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from trtbuild.store.tiers.tier import CONNECT_S, LOOKUP_S, PART_S, NoAnswerError, TierError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_REDIRECTS = 5
_TRIES = 3
_FIRST_PAUSE_S = 0.2
_AGAIN = frozenset({429, 500, 502, 503, 504})
_MOVED = frozenset({301, 302, 303, 307, 308})
_READ_BYTES = 1 << 20
_ERROR_BYTES = 2000
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A request. ``body`` may be a file, which is sent in parts."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Path = b""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A response whose body is read with :meth:`chunks`, once; ``headers`` are lower-case."""

    url: str
    status: int
    headers: Mapping[str, str]
    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse

    def chunks(self, within_s: float | None = None) -> Iterator[bytes]:
        """Yield the body; refuses one that is shorter than announced or takes too long.

        Each part may take ``PART_S``, all of it ``within_s`` where that is given.
        """
        ends = None if within_s is None else time.monotonic() + within_s
        try:
            while True:
                if ends is not None and time.monotonic() > ends:
                    raise TierError(f"{_bare(self.url)}: stalls. Try again later")
                chunk = self.response.read1(_READ_BYTES)
                if not chunk:
                    break
                yield chunk
            if self.response.length:
                raise TierError(
                    f"{_bare(self.url)}: its answer ends {self.response.length} bytes early. "
                    f"Try again"
                )
        except (OSError, http.client.HTTPException) as error:
            raise _failed(self.url, error) from error
        finally:
            self.close()

    def read(self, limit_bytes: int) -> bytes:
        """Return a small body, in time and at most ``limit_bytes``, or refuse."""
        data = b""
        for chunk in self.chunks(LOOKUP_S):
            data += chunk
            if len(data) > limit_bytes:
                self.close()
                raise TierError(
                    f"{_bare(self.url)}: its answer has more than {limit_bytes} bytes. It is "
                    f"not a registry of trtbuild's"
                )
        return data

    def reason(self) -> str:
        """Return status and the beginning of the body, for a message."""
        try:
            text = self.response.read(_ERROR_BYTES).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            text = ""
        self.close()
        return (
            f"HTTP {self.status} {self.response.reason} {' '.join(text.split())[:300]}".strip()
        )

    def close(self) -> None:
        """End the connection."""
        self.connection.close()


def ask(question: Question) -> Answer:
    """Return the answer to a request, redirects followed; any status but 429 and 5xx.

    Busy servers are asked again, with growing pauses, until ``LOOKUP_S`` are over. The header
    Authorization goes only to the host that it was made for.

    Raises:
        TierError: no answer came.
    """
    started = time.monotonic()
    for turn in range(_TRIES):
        is_last = turn == _TRIES - 1 or time.monotonic() - started > LOOKUP_S
        try:
            answer = _follow(question)
        except TierError:
            if is_last:
                raise
            answer = None
        if answer is not None and answer.status not in _AGAIN:
            return answer
        if answer is not None and is_last:
            raise NoAnswerError(
                f"{_bare(question.url)}: {answer.reason()}. The server is busy or broken: try "
                f"again later, or work without it (--offline)"
            )
        pause_s = _FIRST_PAUSE_S * 2**turn * random.uniform(0.5, 1.5)  # noqa: S311  no secret
        if answer is not None:
            answer.close()
            pause_s = max(pause_s, _retry_after_s(answer))
        time.sleep(min(pause_s, max(started + LOOKUP_S - time.monotonic(), 0.0)))
    raise AssertionError  # the last turn returns or raises


def _follow(question: Question) -> Answer:
    url, headers = question.url, dict(question.headers)
    for _ in range(_REDIRECTS):
        answer = _ask_once(
            Question(method=question.method, url=url, headers=headers, body=question.body)
        )
        if answer.status not in _MOVED or "location" not in answer.headers:
            return answer
        answer.close()
        target = urljoin(url, answer.headers["location"])
        if urlsplit(target).scheme not in ("https", urlsplit(url).scheme):
            raise TierError(
                f"{_bare(url)}: redirects to {_bare(target)}, which is not encrypted: refused"
            )
        if urlsplit(target).netloc != urlsplit(url).netloc:
            headers = {
                name: value
                for name, value in headers.items()
                if name.lower() != "authorization"
            }
        url = target
    raise TierError(f"{_bare(question.url)}: more than {_REDIRECTS} redirects")


def _ask_once(question: Question) -> Answer:
    parts = urlsplit(question.url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    length = (
        question.body.stat().st_size if isinstance(question.body, Path) else len(question.body)
    )
    headers = {"User-Agent": "trtbuild", **question.headers}
    if length or question.method in ("PUT", "POST"):
        headers["Content-Length"] = str(length)
    connection = None
    try:
        connection = _connect(question.url)
        if isinstance(question.body, Path):
            with question.body.open("rb") as file:
                connection.request(question.method, path or "/", body=file, headers=headers)
        else:
            body = question.body or None
            connection.request(question.method, path or "/", body=body, headers=headers)
        if length < _READ_BYTES and connection.sock is not None:
            connection.sock.settimeout(LOOKUP_S)
        response = connection.getresponse()
        if connection.sock is not None:
            connection.sock.settimeout(PART_S)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if connection is not None:
            connection.close()
        raise _failed(question.url, error) from error
    return Answer(
        url=question.url,
        status=response.status,
        headers={name.lower(): value for name, value in response.getheaders()},
        connection=connection,
        response=response,
    )


def _connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme]
    proxy = "" if proxy_bypass(host) else getproxies().get(parts.scheme, "")
    at = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else None
    first = (at.hostname or "", at.port or 80) if at else (host, port)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            *first, timeout=CONNECT_S, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(*first, timeout=CONNECT_S)
    if at:
        connection.set_tunnel(host, port)
    connection.connect()
    connection.sock.settimeout(PART_S)
    return connection


def _retry_after_s(answer: Answer) -> float:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdigit() else 0.0


def _failed(url: str, error: Exception) -> TierError:
    return NoAnswerError(
        f"{_bare(url)}: {str(error) or type(error).__name__}. Check the network and the URI, "
        f"or work without it (--offline)"
    )


def _bare(url: str) -> str:
    """Return a URL without its query, where tokens and signatures are."""
    return url.partition("?")[0]
