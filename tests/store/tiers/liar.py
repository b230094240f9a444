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
    "redirect in circles",
    "redirect to nowhere",
    "500",
    "403",
    "429",
    "html",
)
"""Each spoils the answers to GET, of records, manifests and blobs alike."""


class Liar(ThreadingHTTPServer):
    """Spoils, as ``fault`` says, what the server at ``upstream`` answers for ``where``."""

    daemon_threads = True
    fault = ""
    where = ""
    upstream = 0
    released = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Liar

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=30)
        headers = dict(self.headers.items())
        connection.request(self.command, self.path, body=body or None, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        fault = self.server.fault if self.command == "GET" else ""
        if self.server.where not in self.path:
            fault = ""
        self._answer(answer, data, fault)
        connection.close()
        self.close_connection = True

    def _answer(self, answer: http.client.HTTPResponse, data: bytes, fault: str) -> None:
        status, length = answer.status, len(data)
        location = ""
        if fault.isdigit():
            status, data, length = int(fault), b"", 0
        elif fault.startswith("redirect"):
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
        with contextlib.suppress(OSError):
            self.wfile.write(b"" if self.command == "HEAD" else data)

    # The base class wants these names.
    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815  as above

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
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
