"""A server that misbehaves: it passes requests on to a real one and spoils what comes back."""

from __future__ import annotations

import contextlib
import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

FAULTS = (
    "flip a bit",
    "flip the last bit",
    "truncate",
    "announce more",
    "announce less",
    "add bytes",
    "empty",
    "stall",
    "trickle",
    "redirect in circles",
    "redirect to nowhere",
    "500",
    "403",
    "429",
    "html",
)
"""Each spoils the answers to GET, of records, manifests and blobs alike."""

WRITE_FAULTS = (
    "swallow",
    "stall",
    "trickle",
    "redirect in circles",
    "redirect to nowhere",
    "500",
    "403",
    "429",
    "html",
)
"""Of answers to HEAD, PUT and POST; the server behind has the request with some of them."""

_TRICKLE_BYTES = 10
_TRICKLE_S = 0.1


class Liar(ThreadingHTTPServer):
    """Spoils, as ``fault`` says, what the server at ``upstream`` answers for ``where``.

    A status is answered without asking it, and "swallow" is 200. ``seen`` has method, path and
    size of every request.
    """

    daemon_threads = True
    fault = ""
    where = ""
    methods: tuple[str, ...] = ("GET",)
    upstream = 0
    released = threading.Event()
    seen: list[tuple[str, str, int]]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Liar

    def _pass_on(self) -> None:
        body = self._body()
        fault = self.server.fault if self.command in self.server.methods else ""
        if self.server.where not in self.path:
            fault = ""
        self.close_connection = True
        if fault.isdigit() or fault == "swallow":
            self.send_response_only(int(fault) if fault.isdigit() else 200)
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=30)
        headers = dict(self.headers.items())
        connection.request(self.command, self.path, body=body or None, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        self._answer(answer, data, fault)
        connection.close()

    def _body(self) -> bytes:
        """Read the request's body, counting what came of one that is cut."""
        length, body = int(self.headers.get("Content-Length") or 0), b""
        self.server.seen.append((self.command, self.path, 0))
        place = len(self.server.seen) - 1
        while len(body) < length:
            chunk = self.rfile.read1(min(1 << 16, length - len(body)))
            if not chunk:
                break
            body += chunk
            self.server.seen[place] = (self.command, self.path, len(body))
        return body

    def _answer(self, answer: http.client.HTTPResponse, data: bytes, fault: str) -> None:
        status, length = answer.status, len(data)
        location = ""
        if fault.startswith("redirect"):
            status, data, length = 307, b"", 0
            location = self.path if fault.endswith("circles") else "http://127.0.0.1:9/x"
        elif fault == "html":
            status, data = 200, b"<html>Log in to the hotel's network</html>"
            length = len(data)
        elif status in (200, 206):
            data, length = _spoiled(fault, data)
        self.send_response_only(status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        if location:
            self.send_header("Location", location)
        sent = answer.getheader("Content-Length") if self.command == "HEAD" else str(length)
        self.send_header("Content-Length", sent or "0")
        self.send_header("Connection", "close")
        self.end_headers()
        if fault == "stall":
            self.wfile.flush()
            self.server.released.wait(30)
            return
        data = b"" if self.command == "HEAD" else data
        with contextlib.suppress(OSError):
            while data and fault == "trickle":
                self.wfile.write(data[:_TRICKLE_BYTES])
                self.wfile.flush()
                data = b"" if self.server.released.wait(_TRICKLE_S) else data[_TRICKLE_BYTES:]
            self.wfile.write(data)

    # The base class wants these names.
    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _pass_on  # noqa: N815  as above

    def log_message(self, *_: Any) -> None:  # noqa: ANN401  the base class has it so
        """Say nothing."""


def _spoiled(fault: str, data: bytes) -> tuple[bytes, int]:
    """Return the bytes to send, and the length to announce."""
    length = len(data)
    if fault == "flip a bit":
        middle = length // 2
        data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    elif fault == "flip the last bit":
        data = data[:-1] + bytes([data[-1] ^ 1])
    elif fault == "truncate":
        data = data[: length // 2]
        length = len(data)
    elif fault == "announce more":
        length += 1000
    elif fault == "announce less":
        length //= 2
    elif fault == "add bytes":
        data += b"more"
        length = len(data)
    elif fault == "empty":
        data, length = b"", 0
    return data, length


@contextlib.contextmanager
def lying(upstream: int) -> Iterator[Liar]:
    server = Liar(("127.0.0.1", 0), _Handler)
    server.upstream = upstream
    server.released = threading.Event()
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
