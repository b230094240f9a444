"""Connections to registries: kept for the next question, and bound by one deadline in all.

A time limit of a socket is for one read: a server that sends a byte now and then never exceeds
it. Here every read and write may take what is left until a moment that the user of the
connection sets.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import ssl
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from trtbuild.store.tiers.tier import CONNECT_S

if TYPE_CHECKING:
    import socket

    from _typeshed import ReadableBuffer, WriteableBuffer

_DEFAULT_PORTS = {"http": 80, "https": 443}
_KEPT = 8
"""Idle connections to one server; as many as parts of a blob are under way at most."""

_IDLE: dict[tuple[str, str], list[Connection]] = {}
_LOCK = threading.Lock()


@dataclass(kw_only=True)
class Wire:
    """A connected socket as ``http.client`` uses one; nothing on it lasts beyond ``ends``."""

    socket: socket.socket
    ends: float

    def sendall(self, data: ReadableBuffer) -> None:
        """Send all of it in time."""
        self.limit()
        self.socket.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a file that reads in time."""
        raw = self.socket.makefile("rb", buffering=0)
        return io.BufferedReader(_Timed(raw, self))

    def close(self) -> None:
        """Close the socket, once no file of it is open."""
        self.socket.close()

    def limit(self) -> None:
        """Let the next call last until ``ends``."""
        left_s = self.ends - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self.socket.settimeout(left_s)


@dataclass(kw_only=True)
class Connection:
    """A connection for one request at a time; ``is_fresh`` until it has had an answer."""

    http: http.client.HTTPConnection
    wire: Wire
    place: tuple[str, str]
    is_fresh: bool = True

    def close(self) -> None:
        """End it."""
        self.http.close()


class _Timed(io.RawIOBase):
    """What arrives on a wire, each read limited by its deadline."""

    def __init__(self, raw: socket.SocketIO, wire: Wire) -> None:
        super().__init__()
        self._raw, self._wire = raw, wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        self._wire.limit()
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def connect(url: str, ends: float) -> Connection:
    """Return a connection to the server of ``url``, through the environment's proxy.

    One that is idle, or a new one. Nothing on it may last beyond ``ends`` (monotonic).

    Raises:
        OSError: it does not come about.
    """
    parts = urlsplit(url)
    proxy = "" if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme, "")
    place = (f"{parts.scheme}://{parts.netloc}", proxy)
    with _LOCK:
        idle = _IDLE.get(place)
        kept = idle.pop() if idle else None
    if kept is not None:
        kept.wire.ends = ends
        return kept
    return _opened(place, ends)


def keep(connection: Connection) -> None:
    """Keep a connection whose answer was read to its end for the next question."""
    connection.is_fresh = False
    with _LOCK:
        idle = _IDLE.setdefault(connection.place, [])
        if len(idle) < _KEPT:
            idle.append(connection)
            return
    connection.close()


def _opened(place: tuple[str, str], ends: float) -> Connection:
    parts = urlsplit(place[0])
    host, port = parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme]
    proxy = place[1]
    at = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else None
    first = (at.hostname or "", at.port or 80) if at else (host, port)
    left_s = max(min(CONNECT_S, ends - time.monotonic()), 0.001)
    made: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        made = http.client.HTTPSConnection(*first, timeout=left_s, context=context)
    else:
        made = http.client.HTTPConnection(*first, timeout=left_s)
    if at:
        made.set_tunnel(host, port)
    try:
        made.connect()
    except BaseException:
        made.close()
        raise
    wire = Wire(socket=made.sock, ends=ends)
    made.sock = wire  # http.client uses these methods of a socket, no others
    return Connection(http=made, wire=wire, place=place)


def _forget() -> None:
    """Begin anew in a forked child: the connections are its parent's."""
    global _LOCK  # noqa: PLW0603  a thread of the parent may have held it
    _LOCK = threading.Lock()
    for idle in _IDLE.values():
        for connection in idle:
            with contextlib.suppress(OSError):  # the child's copy of the descriptor only
                connection.wire.socket.close()
    _IDLE.clear()


os.register_at_fork(after_in_child=_forget)
