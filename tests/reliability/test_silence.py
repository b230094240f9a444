"""S6 and S7: neither a build, nor a load, nor any of their children unpickles or connects."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends import graphs

ROOT = Path(__file__).parents[2]
WATCHED = ("connect", "bind", "send", "get")
WATCH = """
import os, sys
def tell(what):
    with open({seen!r}, "a") as file:
        print(what, *sys.orig_argv[1:4], file=file)
tell("START")
def watch(event, arguments):
    if event.startswith(("pickle.", *("socket." + each for each in {watched!r}))):
        tell("EVENT " + event)
sys.addaudithook(watch)
import pickle, _pickle
for module in (pickle, _pickle):
    for name in ("load", "loads", "Unpickler"):
        def refused(*arguments, name=name, **more):
            tell("EVENT pickle." + name)
            raise RuntimeError(name)
        setattr(module, name, refused)
"""
LOAD = """
import sys, numpy, trtbuild
from trtbuild.store import Store
key, = Store.open(sys.argv[1]).keys("engine", "")
with trtbuild.load(key, sys.argv[1]) as session:
    session.run({spec.name: numpy.zeros([n if isinstance(n, int) else 1 for n in spec.shape],
                                        spec.dtype) for spec in session.inputs})
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A copy of the package with the watch beside it, which its children import too.

    They get a search path of their own, the folder that the package is in.
    """
    folder = tmp_path / "code"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "trtbuild", folder / "trtbuild", ignore=ignored)
    watch = WATCH.format(seen=str(tmp_path / "seen"), watched=WATCHED)
    (folder / "sitecustomize.py").write_text(watch)
    return folder


def environment(code: Path) -> dict[str, str]:
    # A sandbox has the package and not the watch; its network is its own in any case.
    more = {"PYTHONPATH": str(code), "TRTBUILD_SANDBOX": "off", "TRTBUILD_OFFLINE": "1"}
    state = {"TRTBUILD_STATE": str(code.parent / "state"), "HOME": str(code.parent)}
    return {**os.environ, **more, **state}


def commands(tmp_path: Path) -> list[list[str]]:
    """Return a build, a full hit, a first load and a second one."""
    graph = graphs.chain(tmp_path / "m.onnx", ["conv"])
    store = str(tmp_path / "store")
    build = ["-m", "trtbuild", "engine", str(graph.path), "--precision", "fp32", "-q"]
    build += ["--backend", "onnxruntime", "--store", store, "--offline"]
    return [build, build, ["-c", LOAD, store], ["-c", LOAD, store]]


def run(prefix: list[str], command: list[str], code: Path) -> None:
    done = subprocess.run(
        [*prefix, sys.executable, *command],
        env=environment(code),
        cwd=code.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("program", "event"),
    [
        ("import pickle; pickle.loads(pickle.dumps(1))", "EVENT pickle.loads"),
        ("import socket; socket.socket().connect(('127.0.0.1', 1))", "EVENT socket.connect"),
        (
            "from socket import *; socket(type=SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
            "EVENT socket.sendto",
        ),
        ("import socket; socket.getaddrinfo('localhost', 1)", "EVENT socket.getaddrinfo"),
    ],
)
def test_what_must_not_happen_would_be_seen(program: str, event: str, code: Path) -> None:
    command = [sys.executable, "-c", program]
    subprocess.run(command, env=environment(code), capture_output=True, check=False)
    assert event in (code.parent / "seen").read_text()


@pytest.mark.slow
def test_no_process_of_a_build_or_load_unpickles_or_opens_a_connection(
    code: Path, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    names = "trace=connect,bind,sendto,sendmsg,sendmmsg"
    strace = ["strace", "-f", "-qq", "-e", names, "-o", str(calls), "-A"]
    for command in commands(tmp_path):
        run(strace if shutil.which("strace") else [], command, code)
    seen = (tmp_path / "seen").read_text()
    assert "START -m trtbuild.backends.child" in seen
    assert "START -m trtbuild.runtime.canary_child" in seen
    assert "EVENT" not in seen
    if calls.exists():
        assert "AF_INET" not in calls.read_text()
        assert "AF_UNIX" not in calls.read_text()


@pytest.mark.slow
def test_a_build_and_a_load_need_no_network_at_all(code: Path, tmp_path: Path) -> None:
    denied = ["bwrap", "--unshare-net", "--dev-bind", "/", "/"]
    if not shutil.which("bwrap") or subprocess.run([*denied, "true"], check=False).returncode:
        pytest.skip("no bubblewrap that can take the network away")
    look = "import socket; print(socket.socket().connect_ex(('192.0.2.1', 80)))"
    done = subprocess.run(
        [*denied, sys.executable, "-c", look], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "101", "ENETUNREACH"
    for command in commands(tmp_path):
        run(denied, command, code)
