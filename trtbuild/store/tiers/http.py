"""HTTP for registries: time limits, retries, redirects that leak nothing, no cookies.

The standard library's client, so that nothing has to be installed; proxies are taken from the
environment.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from trtbuild.store.tiers import connections
from trtbuild.store.tiers.tier import LOOKUP_S, PART_BYTES, PART_S, NoAnswerError, TierError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trtbuild.store.tiers.connections import Connection

_REDIRECTS = 5
_TRIES = 3
_FIRST_PAUSE_S = 0.2
_AGAIN = frozenset({429, 500, 502, 503, 504})
_MOVED = frozenset({301, 302, 303, 307, 308})
_READ_BYTES = 1 << 20
_LARGE_BYTES = 1 << 16
_ERROR_BYTES = 2000
_REST_BYTES = 1 << 16
"""What is read of an answer that nobody wants, so that its connection can be used again."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A request."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def limit_s(self) -> float:
        """How long it may take until the answer begins."""
        return PART_S if len(self.body) > _LARGE_BYTES else LOOKUP_S


@dataclass(kw_only=True)
class Answer:
    """A response whose body is read once, with one of the methods; headers are lower-case."""

    url: str
    status: int
    headers: Mapping[str, str]
    connection: Connection
    response: http.client.HTTPResponse
    _is_closed: bool = False

    def chunks(self) -> Iterator[bytes]:
        """Yield a large body, each 8 MiB of it within ``PART_S``; refuses one that is short."""
        read_bytes = 0
        self.connection.wire.ends = time.monotonic() + PART_S
        for chunk in self._chunks():
            read_bytes += len(chunk)
            if read_bytes >= PART_BYTES:
                read_bytes = 0
                self.connection.wire.ends = time.monotonic() + PART_S
            yield chunk

    def read(self, limit_bytes: int) -> bytes:
        """Return a small body, in the question's time; refuse more than ``limit_bytes``."""
        data = b""
        for chunk in self._chunks():
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
        """Be done with the answer; its connection is kept where all of it was read."""
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(OSError, http.client.HTTPException):
            if (self.response.length or 0) <= _REST_BYTES:
                self.response.read(_REST_BYTES)
            if self.response.isclosed() and not self.response.will_close:
                connections.keep(self.connection)
                return
        self.response.close()
        self.connection.close()

    def _chunks(self) -> Iterator[bytes]:
        try:
            while chunk := self.response.read1(_READ_BYTES):
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


def ask(question: Question) -> Answer:
    """Return the answer to a request, redirects followed; any status but 429 and 5xx.

    Busy servers are asked again, with growing pauses. All tries of a small question together
    end after ``LOOKUP_S``, the answer's headers included; for a large body each has ``PART_S``.
    The header Authorization goes only to the host that it was made for.

    Raises:
        TierError: no answer came.
    """
    started = time.monotonic()
    for turn in range(_TRIES):
        is_last = turn == _TRIES - 1 or time.monotonic() - started >= LOOKUP_S
        begun = started if question.limit_s == LOOKUP_S else time.monotonic()
        try:
            answer = _follow(question, begun + question.limit_s)
        except TierError:
            if is_last or time.monotonic() - started >= LOOKUP_S:
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


def _follow(question: Question, ends: float) -> Answer:
    url, headers = question.url, dict(question.headers)
    for _ in range(_REDIRECTS):
        answer = _ask_once(
            Question(method=question.method, url=url, headers=headers, body=question.body), ends
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


def _ask_once(question: Question, ends: float) -> Answer:
    """Ask on an idle connection, and on a new one where the server had ended that."""
    while True:
        connection = None
        try:
            connection = connections.connect(question.url, ends)
            return _asked(question, connection)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if connection is not None:
                connection.close()
                if not connection.is_fresh and isinstance(error, ConnectionError):
                    continue
            raise _failed(question.url, error) from error


def _asked(question: Question, connection: Connection) -> Answer:
    parts = urlsplit(question.url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    headers = {"User-Agent": "trtbuild", **question.headers}
    if question.body or question.method in ("PUT", "POST"):
        headers["Content-Length"] = str(len(question.body))
    connection.http.request(
        question.method, path or "/", body=question.body or None, headers=headers
    )
    response = connection.http.getresponse()
    return Answer(
        url=question.url,
        status=response.status,
        headers={name.lower(): value for name, value in response.getheaders()},
        connection=connection,
        response=response,
    )


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
