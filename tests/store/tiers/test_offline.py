"""What ``--offline`` promises, seen by the kernel: S3's client is no Python."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trtbuild.store import Store

if TYPE_CHECKING:
    from tests.store.tiers.servers import Server

ROOT = Path(__file__).parents[3]
NOTHING = hashlib.sha256(b"nothing").hexdigest()
COMMANDS = (
    ["inspect", NOTHING],
    ["cache", "show", NOTHING],
    ["cache", "why", NOTHING, NOTHING],
    ["cache", "pin", NOTHING],
    ["bench", NOTHING],
    ["promote", NOTHING, "--key", "nobody"],
    ["lock", NOTHING],
    ["doctor"],
)


def connections(tmp_path: Path, uri: str, command: list[str]) -> str:
    """Return the system calls of ``command`` that name an address of the network."""
    strace = shutil.which("strace")
    if not strace:
        pytest.skip("needs strace: the S3 client is no Python, whose audit hook it passes by")
    Store.open(str(tmp_path / "store"))
    calls = tmp_path / "calls"
    trace = [strace, "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o"]
    done = subprocess.run(
        [*trace, str(calls), sys.executable, "-m", "trtbuild", *command, "--store", uri],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "No such option" not in done.stderr
    assert done.returncode in (0, 2, 3), done.stderr
    return "\n".join(line for line in calls.read_text().splitlines() if "AF_INET" in line)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2])[:12])
def test_offline_connects_to_nothing(tmp_path: Path, moto: Server, command: list[str]) -> None:
    uri = f"{tmp_path / 'store'},oci://127.0.0.1:{moto.port}/engines,{moto.uri('x')}"
    assert connections(tmp_path, uri, [*command, "--offline"]) == ""


@pytest.mark.parametrize("scheme", ["oci", "s3"])
def test_without_the_flag_each_tier_is_connected_to(
    tmp_path: Path, moto: Server, scheme: str
) -> None:
    """What the tests above would see."""
    tier = moto.uri("x") if scheme == "s3" else f"oci://127.0.0.1:{moto.port}/engines"
    uri = f"{tmp_path / 'store'},{tier}"
    assert f"htons({moto.port})" in connections(tmp_path, uri, ["inspect", NOTHING])
