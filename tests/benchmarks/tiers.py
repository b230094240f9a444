"""What remote tiers cost: requests of a hit, rate and memory of a download, how long who waits.

    python -m tests.benchmarks.tiers

Servers are those of the tests, on this machine. The link is a proxy that passes so many bytes
a second; the plain client reads the same object through it in one request and writes it to a
file.
"""

from __future__ import annotations

import http.client
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.store.tiers import servers
from tests.store.tiers.liar import lying
from trtbuild.canonical import digest
from trtbuild.store import Store, make_record
from trtbuild.store.lease import get_or_make
from trtbuild.store.statements import put_statement
from trtbuild.store.tiers.address import read_address
from trtbuild.store.tiers.connect import connect
from trtbuild.store.tiers.names import blob_name
from trtbuild.store.tiers.tier import Upload
from trtbuild.store.tiers.transfer import pull, push

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trtbuild.store import Record

KEY = digest("benchmark", "key")
MIB = 1 << 20
LINK_BYTES_PER_S = 50_000_000
LINK_MIB = 192
MEMORY_MIB = 512
ROUNDS = 5
PULL = (
    "import sys\n"
    "from tests.benchmarks.tiers import peak_of_pull\n"
    "peak_of_pull(sys.argv[1], sys.argv[2])\n"
)


class Link(ThreadingHTTPServer):
    """A proxy to the server at ``upstream`` with one rate for all connections together."""

    daemon_threads = True
    upstream = 0
    lock = threading.Lock()
    free = 0.0

    def take(self, count: int) -> None:
        """Wait until ``count`` bytes are through."""
        with self.lock:
            start = max(self.free, time.monotonic())
            self.free = start + count / LINK_BYTES_PER_S
            ends = self.free
        time.sleep(max(0.0, ends - time.monotonic()))


class _Through(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Link

    def do_GET(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        connection.request("GET", self.path, headers=dict(self.headers.items()))
        answer = connection.getresponse()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            self.send_header(name, value)
        self.end_headers()
        while chunk := answer.read(1 << 16):
            self.server.take(len(chunk))
            self.wfile.write(chunk)
        connection.close()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:  # noqa: ANN401  the base class has it so
        """Say nothing."""


@contextmanager
def link_to(upstream: int) -> Iterator[int]:
    server = Link(("127.0.0.1", 0), _Through)
    server.upstream = upstream
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def filled(folder: Path, uri: str, size_bytes: int) -> Record:
    store = Store.open(str(folder))
    blob = store.put_bytes("engine", os.urandom(size_bytes))
    put_statement(store, blob.sha256, b"signed")
    record = store.put(make_record("engine", KEY, {}, {}, (blob,)))
    push(connect(read_address(uri)), store, record)
    return record


def requests_of_a_hit(name: str, port: int, folder: Path) -> None:
    place = f"t{secrets.token_hex(6)}"
    with lying(port) as proxy:
        uri = uri_of(name, proxy.server_address[1], place)
        filled(folder / f"{name}-first", uri, MIB)
        proxy.seen.clear()
        store = Store.open(f"{folder / f'{name}-second'},{uri}")
        if store.get("engine", KEY) is None:
            raise RuntimeError(uri)
        print(f"requests of a hit, 1 MiB, one statement, {name}: {len(proxy.seen)}")
        for method, path, _ in proxy.seen:
            print(f"  {method} {path.partition('?')[0][-90:]}")


def uri_of(name: str, port: int, place: str) -> str:
    if name == "registry":
        return f"oci://127.0.0.1:{port}/{place}"
    return f"s3://{servers.BUCKET}/{place}?endpoint=http://127.0.0.1:{port}&region=us-east-1"


def download_rate(name: str, port: int, folder: Path) -> None:
    """Compare a verified, durable pull with a plain client, in turns."""
    place = f"t{secrets.token_hex(6)}"
    direct = uri_of(name, port, place)
    record = filled(folder / f"{name}-rate", direct, LINK_MIB * MIB)
    blob = record.blobs[0]
    whole = Upload(
        name=blob_name(blob.sha256),
        data=Store.open(str(folder / f"{name}-rate")).read(blob.sha256),
    )
    connect(read_address(direct)).put_new(whole)
    path = f"/{servers.BUCKET}/{place}/{whole.name}"
    if name == "registry":
        path = f"/v2/{place}/blobs/sha256:{blob.sha256}"
    ratios, rates = [], []
    with link_to(port) as through:
        for turn in range(ROUNDS):
            plain_s = plain(through, path, folder / "plain")
            store = Store.open(str(folder / f"{name}-rate-{turn}"))
            tier = connect(read_address(uri_of(name, through, place)))
            started = time.monotonic()
            if not pull(tier, store, "engine", KEY):
                raise RuntimeError(name)
            took_s = time.monotonic() - started
            ratios.append(plain_s / took_s)
            rates.append(LINK_MIB * MIB / took_s / 1e6)
            store.path(blob.sha256).unlink()
    print(
        f"download of {LINK_MIB} MiB over {LINK_BYTES_PER_S / 1e6:.0f} MB/s, {name}: "
        f"{statistics.median(rates):.1f} MB/s; of a plain client's rate "
        f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    )


def plain(port: int, path: str, out: Path) -> float:
    started = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    with out.open("wb") as file:
        while chunk := answer.read(MIB):
            file.write(chunk)
    connection.close()
    if out.stat().st_size != LINK_MIB * MIB:
        raise RuntimeError(path)
    return time.monotonic() - started


def memory(name: str, port: int, folder: Path) -> None:
    uri = uri_of(name, port, f"t{secrets.token_hex(6)}")
    filled(folder / f"{name}-large", uri, MEMORY_MIB * MIB)
    command = [sys.executable, "-c", PULL, str(folder / f"{name}-memory"), uri]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    print(f"peak memory of pulling {MEMORY_MIB} MiB, {name}: {done.stdout.strip()}")


def peak_of_pull(folder: str, uri: str) -> None:
    """Print by how much the peak of this process grows; in a process of its own."""
    store, tier = Store.open(folder), connect(read_address(uri))
    pull(tier, store, "engine", digest("benchmark", "nothing"))  # what is imported and pooled
    before = peak_kib()
    if not pull(tier, store, "engine", KEY):
        raise RuntimeError(uri)
    print(f"{(peak_kib() - before) / 1024:.0f} MiB over {before / 1024:.0f} MiB")


def peak_kib() -> int:
    """Return this program's peak; getrusage has that of who started it too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def wake_up(name: str, uri: str, folder: Path) -> None:
    """Print how long after a host has its engine another that waits for it has it too."""
    waits = []
    for turn in range(ROUNDS):
        key = digest("benchmark", turn)
        hosts = [Store.open(f"{folder / f'{name}-{turn}-{n}'},{uri}") for n in range(2)]
        made: list[float] = []
        builder = threading.Thread(target=build, args=(hosts[0], key, made))
        builder.start()
        time.sleep(0.5)
        get_or_make(hosts[1], "engine", key, never)
        has_it = time.monotonic()
        builder.join()
        waits.append(has_it - made[0])
    print(
        f"who waits has it after, {name}: {statistics.median(waits):.2f} s "
        f"[{min(waits):.2f}, {max(waits):.2f}]"
    )


def build(store: Store, key: str, made: list[float]) -> None:
    def make() -> Record:
        time.sleep(2.5 + secrets.randbelow(1000) / 1000)
        blob = store.put_bytes("engine", os.urandom(MIB))
        return make_record("engine", key, {}, {}, (blob,))

    get_or_make(store, "engine", key, make)
    made.append(time.monotonic())


def never() -> Record:
    raise AssertionError


def main() -> None:
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "share").mkdir()
        wake_up("folder", f"{folder / 'share'}?write=yes", folder)
        with servers.localbucket(folder / "localbucket") as server:
            wake_up("S3", f"{uri_of('S3', server.port, 'wake')}&write=yes", folder)
            requests_of_a_hit("S3", server.port, folder)
            download_rate("S3", server.port, folder)
            memory("S3", server.port, folder)
        with servers.registry(folder / "registry") as server:
            requests_of_a_hit("registry", server.port, folder)
            download_rate("registry", server.port, folder)
            memory("registry", server.port, folder)


if __name__ == "__main__":
    main()
