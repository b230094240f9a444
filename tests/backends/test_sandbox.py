"""What a confined build can reach, and what it cannot."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.backends import bubblewrap, building, graphs
from trtbuild.backends import isolation, sandbox
from trtbuild.backends.isolation import build_isolated
from trtbuild.errors import BuildError, MissingBackendError, UsageError
from trtbuild.recipe import Limits

if TYPE_CHECKING:
    from trtbuild.engine import Target

LIMITS = Limits(build_seconds=120)

LOOK = """
import json, os, socket, sys
secret, port, readable, writable = sys.argv[1:]
def tries(what, *arguments):
    try:
        return bool(what(*arguments)) or True
    except OSError:
        return False
print(json.dumps({
    "secret": tries(open, secret),
    "home": tries(os.listdir, os.path.expanduser("~root")) and bool(os.listdir("/root")),
    "network": tries(socket.create_connection, ("127.0.0.1", int(port)), 5),
    "shadow": tries(open, "/etc/shadow"),
    "usr": tries(open, "/usr/written", "w"),
    "model": tries(open, readable + "/m.onnx"),
    "beside the model": tries(open, readable + "/written", "w"),
    "out": tries(open, writable + "/written", "w"),
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
}))
"""


def look(program: str, tmp_path: Path) -> dict[str, object]:
    readable, writable = tmp_path / "model", tmp_path / "out"
    for folder in (readable, writable):
        folder.mkdir()
    (readable / "m.onnx").touch()
    secret = tmp_path / "secret"
    secret.write_text("a key")
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [
            *sandbox.confined(program, (readable,), (writable,)),
            *(sys.executable, "-c", LOOK, str(secret), str(server.getsockname()[1])),
            *(str(readable), str(writable)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_a_confined_build_reaches_the_model_and_its_own_folder_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = look(bubblewrap.require(monkeypatch), tmp_path)
    processes = found.pop("processes")
    assert found == {
        "secret": False,
        "home": False,
        "network": False,
        "shadow": False,
        "usr": False,
        "model": True,
        "beside the model": False,
        "out": True,
    }
    assert processes == 2, "bubblewrap's own and this one"
    assert not Path("/usr/written").exists()


@pytest.mark.parametrize(
    "target", [building.ORT, pytest.param(building.rtx("sm_89"), marks=pytest.mark.rtx)]
)
def test_engines_are_built_in_the_sandbox(
    target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bubblewrap.require(monkeypatch)
    (tmp_path / "model").mkdir()
    graph = graphs.residual(tmp_path / "model" / "m.onnx", None)
    record = build_isolated(building.request(graph, target, tmp_path / "engine"), LIMITS)
    assert record.layers.layers
    assert (tmp_path / "engine").stat().st_size > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "model"]


@pytest.mark.rtx
def test_a_crash_in_the_sandbox_still_names_its_signal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bubblewrap.require(monkeypatch)
    graph = graphs.division(tmp_path / "m.onnx", 0)
    wish = building.request(graph, building.rtx("sm_89"), tmp_path / "engine")
    with pytest.raises(BuildError, match="crashed with SIGFPE while"):
        build_isolated(wish, LIMITS)


def test_a_signal_is_told_from_an_exit_code() -> None:
    codes = [sandbox.returncode(code) for code in (0, 1, 128 + signal.SIGSEGV, -9)]
    assert codes == [0, 1, -signal.SIGSEGV, -9]


def test_where_bubblewrap_does_not_work_builds_go_on_unless_it_is_required(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "bin" / "bwrap"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'setting up uid map: Permission denied' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent))
    monkeypatch.delenv(sandbox.VARIABLE, raising=False)
    found = sandbox.chosen()
    assert not found.program
    assert "uid map: Permission denied" in found.reason
    assert "user namespaces" in found.remedy
    monkeypatch.setenv(sandbox.VARIABLE, "require")
    with pytest.raises(MissingBackendError, match="uid map: Permission denied"):
        sandbox.chosen()
    monkeypatch.setenv(sandbox.VARIABLE, "off")
    assert sandbox.chosen().reason == "TRTBUILD_SANDBOX=off"
    monkeypatch.setenv(sandbox.VARIABLE, "maybe")
    with pytest.raises(UsageError, match="expected one of auto, off, require"):
        sandbox.chosen()


def test_a_machine_without_bubblewrap_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(sandbox.VARIABLE, raising=False)
    assert "apt install bubblewrap" in sandbox.chosen().remedy


@pytest.mark.parametrize("mode", ["pinned:abc", "auto"])
def test_a_build_does_not_see_its_timing_cache_but_a_copy(mode: str, tmp_path: Path) -> None:
    shard = tmp_path / "ab"
    shard.mkdir()
    cache = shard / "cache"
    cache.write_bytes(b"times")
    graph = graphs.residual(tmp_path / "m.onnx", None)
    wish = building.request(graph, building.rtx("sm_89"), tmp_path / "out", timing_cache=mode)
    wish = msgspec.structs.replace(wish, timing_cache=cache)
    words = isolation._prefix("bwrap", wish, tmp_path / "job")  # noqa: SLF001  what is started
    assert str(tmp_path / "job") in words
    assert not {str(cache), str(shard)} & set(words)
