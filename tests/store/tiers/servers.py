"""Real servers for the tests, each a child process on a free port, ended by its fixture."""

from __future__ import annotations

import base64
import contextlib
import hmac
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
BUCKET = "engines"
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""The emulator's own, which its manual prints."""

_PATIENCE_S = 60.0
_MOTO = (
    "import sys; from moto.server import main; "
    "sys.argv = ['moto_server', '-H', '127.0.0.1', '-p', sys.argv[1]]; main()"
)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that listens on ``port`` of 127.0.0.1; ``data`` is where it keeps things."""

    port: int
    data: Path
    process: subprocess.Popen[bytes]

    def uri(self, prefix: str, options: str = "") -> str:
        endpoint = f"endpoint=http://127.0.0.1:{self.port}&region=us-east-1"
        return f"s3://{BUCKET}/{prefix}?{endpoint}{options}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(command: list[str], port: int, data: Path, path: str = "/") -> Iterator[Server]:
    data.mkdir(parents=True, exist_ok=True)
    with (data / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(process, f"http://127.0.0.1:{port}{path}", data / "log")
            yield Server(port=port, data=data, process=process)
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def moto(data: Path) -> Iterator[Server]:
    port = free_port()
    with serving([sys.executable, "-c", _MOTO, str(port)], port, data) as server:
        put(port, f"/{BUCKET}")
        yield server


@contextlib.contextmanager
def localbucket(data: Path) -> Iterator[Server]:
    port = free_port()
    (data / "buckets" / BUCKET).mkdir(parents=True)
    command = [sys.executable, "-m", "localbucket", "--port", str(port), str(data / "buckets")]
    with serving(command, port, data) as server:
        yield server


@contextlib.contextmanager
def registry(data: Path) -> Iterator[Server]:
    port = free_port()
    data.mkdir(parents=True, exist_ok=True)
    config = data / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {data / 'storage'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    command = [registry_program(), "serve", str(config)]
    with serving(command, port, data, "/v2/") as server:
        yield server


@contextlib.contextmanager
def azurite(data: Path) -> Iterator[Server]:
    """Microsoft's emulator of Azure Blob Storage, where somebody has installed it."""
    program = shutil.which("azurite-blob")
    if not program:
        pytest.skip("no azurite-blob on PATH: npm install azurite, 186 MB in 374 packages")
    port = free_port()
    options = ["--skipApiVersionCheck", "--location", str(data), "--blobPort", str(port)]
    with serving([program, *options], port, data) as server:
        make_container(port)
        yield server


def make_container(port: int) -> None:
    """Make the container, which obstore cannot ("Authorize with Shared Key")."""
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    headers = {"x-ms-date": date, "x-ms-version": "2021-08-06"}
    lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in headers.items())]
    path = f"/{AZURE_ACCOUNT}/{BUCKET}"
    signed = "\n".join([*lines, f"/{AZURE_ACCOUNT}{path}", "restype:container"])
    code = hmac.digest(base64.b64decode(AZURE_KEY), signed.encode(), "sha256")
    headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(code).decode()}"
    put(port, f"{path}?restype=container", headers)


def registry_program() -> str:
    """Return the program docker-registry: Debian's, fetched without root where it is absent."""
    found = shutil.which("docker-registry")
    if found:
        return found
    cache = ROOT / ".venv" / "docker-registry"
    program = cache / "root" / "usr" / "bin" / "docker-registry"
    if program.exists():
        return str(program)
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        pytest.skip("no docker-registry on PATH, and no apt-get and dpkg to fetch Debian's")
    draft = cache / f"draft.{os.getpid()}"
    draft.mkdir(parents=True, exist_ok=True)
    try:
        fetched = subprocess.run(
            ["apt-get", "download", "docker-registry"],
            cwd=draft,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        packages = list(draft.glob("docker-registry_*.deb"))
        if not packages:
            pytest.skip(f"apt-get download docker-registry: {fetched.stderr.strip()}")
        subprocess.run(["dpkg", "-x", packages[0], draft / "root"], check=True, timeout=60)
        with contextlib.suppress(OSError):  # another process was first
            (draft / "root").rename(cache / "root")
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return str(program)


def put(port: int, path: str, headers: dict[str, str] | None = None) -> None:
    url = f"http://127.0.0.1:{port}{path}"
    request = urllib.request.Request(url, method="PUT", headers=headers or {})
    with urllib.request.urlopen(request, timeout=10):  # noqa: S310  our own server
        pass


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    ends = time.monotonic() + _PATIENCE_S
    while time.monotonic() < ends:
        assert process.poll() is None, log.read_text(errors="replace")
        with contextlib.suppress(OSError):
            try:
                urllib.request.urlopen(url, timeout=5).close()  # noqa: S310  our own server
            except urllib.error.HTTPError:
                return  # it answers
            return
        time.sleep(0.05)
    pytest.fail(f"{url}: no answer within {_PATIENCE_S} s: {log.read_text(errors='replace')}")
