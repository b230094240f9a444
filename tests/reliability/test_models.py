"""Models from strangers: nothing outside of the copy is read, nothing crashes or hangs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from tests.backends import graphs
from trtbuild.backends import staging
from trtbuild.backends.distributions import version
from trtbuild.errors import TrtbuildError
from trtbuild.graph import Graph
from trtbuild.graph.model import read_graph

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WEIGHT = "conv_0_w"
BYTES = graphs.CHANNELS * graphs.CHANNELS * 9 * 4
SECRET = b"SECRET" * 10_000

LOCATIONS = {
    "parent": "../secret/w.bin",
    "nested parent": "sub/../../secret/w.bin",
    "parents": "../" * 40 + "etc/passwd",
    "dot parent": "./../secret/w.bin",
    "absolute": "{secret}",
    "double slash": "//etc/passwd",
    "device": "/dev/zero",
    "process": "/proc/self/environ",
    "empty": "",
    "dot": ".",
    "folder": "sub",
    "slash at the end": "w.bin/",
    "NUL": "w.bin\0.txt",
    "NUL first": "\0w.bin",
    "4096 characters": "a" * 4096,
    "300 characters": "b" * 300,
    "4096 folders": "d/" * 4096 + "w.bin",
    "case": "W.BIN",
    "backslash": "..\\secret\\w.bin",
    "URI": "file:///etc/passwd",
    "newline": "w.bin\n../secret/w.bin",
    "percent": "%2e%2e/secret/w.bin",
    "tilde": "~/w.bin",
    "missing": "none.bin",
}
RANGES = {
    "negative offset": {"offset": "-1"},
    "negative length": {"length": "-1"},
    "huge offset": {"offset": str(1 << 62)},
    "huge length": {"length": str(1 << 62)},
    "overflowing": {"offset": str((1 << 64) - 8), "length": "16"},
    "beyond 64 bits": {"offset": str(1 << 70)},
    "no number": {"offset": "0x10"},
    "short": {"length": "4"},
    "past the end": {"offset": "4"},
}


def links(folder: Path, secret: Path) -> dict[str, Callable[[], object]]:
    file = folder / "w.bin"
    return {
        "symlink": lambda: file.symlink_to(secret),
        "symlink of a symlink": lambda: twice(file, secret),
        "circle": lambda: file.symlink_to("w.bin"),
        "hard link": lambda: os.link(secret, file),
        "FIFO": lambda: os.mkfifo(file),
        "symlink to a device": lambda: file.symlink_to("/dev/zero"),
        "socket": lambda: bind(file),
    }


def twice(file: Path, secret: Path) -> None:
    file.with_name("other").symlink_to(secret)
    file.symlink_to("other")


def bind(file: Path) -> None:
    import socket  # noqa: PLC0415  one case needs it

    with socket.socket(socket.AF_UNIX) as server:
        where = Path.cwd()
        os.chdir(file.parent)  # its name may have 108 bytes at most
        try:
            server.bind(file.name)
        finally:
            os.chdir(where)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with one weight outside, at ``w.bin``, which is not there yet."""
    for name in ("model", "secret", "model/sub"):
        (tmp_path / name).mkdir()
    (tmp_path / "secret" / "w.bin").write_bytes(SECRET)
    graph = graphs.chain(tmp_path / "model" / "m.onnx", ["conv"])
    graphs.move_outside(graph.path, {WEIGHT: ("w.bin", BYTES)})
    return graph.path


def name(path: Path, **entries: str) -> None:
    """Let the weight's entries be these, over location, offset and length as they are."""
    proto = onnx.load(path, load_external_data=False)
    (weight,) = [t for t in proto.graph.initializer if t.name == WEIGHT]
    kept = {entry.key: entry.value for entry in weight.external_data} | entries
    del weight.external_data[:]
    for key, value in kept.items():
        weight.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


def refused(path: Path, copy: Path) -> None:
    """Neither way of reading takes the model, and nothing of the secret was copied."""
    with pytest.raises(TrtbuildError):
        read_graph(path)
    graph = Graph(path=path, sha256="0" * 64, inputs=(), outputs=())
    with pytest.raises(TrtbuildError):
        staging.stage(graph, copy)
    copied = [file.read_bytes() for file in copy.glob("*") if file.is_file()]
    assert not any(b"SECRET" in data or b"root:" in data for data in copied)


@pytest.mark.parametrize("case", LOCATIONS)
def test_a_location_outside_of_the_folder_is_refused(case: str, model: Path) -> None:
    """S2."""
    secret = model.parent.parent / "secret" / "w.bin"
    name(model, location=LOCATIONS[case].format(secret=secret))
    refused(model, model.parent.parent / "copy")


@pytest.mark.parametrize("case", RANGES)
def test_a_range_outside_of_the_file_is_refused(case: str, model: Path) -> None:
    model.with_name("w.bin").write_bytes(bytes(BYTES))
    name(model, **RANGES[case])
    refused(model, model.parent.parent / "copy")


@pytest.mark.parametrize("case", links(Path(), Path()))
def test_a_link_or_special_file_is_refused(case: str, model: Path) -> None:
    secret = model.parent.parent / "secret" / "w.bin"
    links(model.parent, secret)[case]()
    graph = Graph(path=model, sha256="0" * 64, inputs=(), outputs=())
    with pytest.raises(TrtbuildError):
        staging.stage(graph, model.parent.parent / "copy")
    copied = (model.parent.parent / "copy").glob("data_*")
    assert not any(b"SECRET" in file.read_bytes() for file in copied)


def test_a_folder_that_becomes_a_link_during_the_copy_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The swap comes between resolving a path and opening it, where races are won."""
    name(model, location="sub/w.bin")
    folder = model.parent / "sub"
    (folder / "w.bin").write_bytes(bytes(BYTES))
    graph = read_graph(model)
    real = Path.resolve

    def swapping(self: Path, strict: bool = False) -> Path:  # noqa: FBT001, FBT002  as Path has it
        answer = real(self, strict)
        if strict and not folder.is_symlink():
            shutil.rmtree(folder)
            folder.symlink_to(model.parent.parent / "secret")
        return answer

    monkeypatch.setattr(Path, "resolve", swapping)
    with pytest.raises(TrtbuildError, match="cannot be read"):
        staging.stage(graph, model.parent.parent / "copy")
    assert folder.is_symlink()
    assert not any((model.parent.parent / "copy").glob("data_*"))


def run(*arguments: object) -> Any:  # noqa: ANN401  decoded JSON
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HERE / "fuzz.py"), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("count", [10, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_the_command_neither_crashes_nor_hangs_on_mutated_models(
    count: int, tmp_path: Path
) -> None:
    """S1: every end is an exit code with its one message."""
    answer = run(os.environ.get("TRTBUILD_FUZZ_COUNT", count), tmp_path)
    print(answer)  # noqa: T201  the record of the run
    assert answer["crashed"] == answer["hung"] == answer["untyped"] == []
    assert sum(answer["codes"].values()) > 0


WATCH = """
import os, pickle, _pickle, sys
def tell(what):
    with open({seen!r}, "a") as file:
        print(what, file=file)
tell("START " + str(os.getpid()))
def watch(event, arguments):
    if event.startswith("pickle.") or event in ("socket.connect", "socket.bind"):
        tell("EVENT " + event)
sys.addaudithook(watch)
for module in (pickle, _pickle):
    for name in ("load", "loads", "Unpickler"):
        def refused(*arguments, name=name, **more):
            tell("EVENT pickle." + name)
            raise RuntimeError(name)
        setattr(module, name, refused)
pickle._Unpickler = pickle.Unpickler
"""
"""Begins every interpreter below the test: the audit hook sees ``find_class`` only, which plain
numbers and lists do not need."""


@pytest.mark.parametrize(
    "program", ["pickle.loads(pickle.dumps([1]))", "numpy.load({file!r}, allow_pickle=True)"]
)
def test_what_is_unpickled_would_be_seen(program: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1], "a"], dtype=object), allow_pickle=True)
    text = program.format(file=str(tmp_path / "a.npy"))
    done = subprocess.run(
        [sys.executable, "-c", f"import pickle, numpy; {text}"],
        env={**os.environ, "PYTHONPATH": watched(tmp_path)},
        check=False,
    )
    assert done.returncode == 1
    assert "EVENT pickle.load" in (tmp_path / "seen").read_text()


def watched(folder: Path) -> str:
    """Return a search path on which every interpreter begins with the watch."""
    (folder / "sitecustomize.py").write_text(WATCH.format(seen=str(folder / "seen")))
    return f"{folder}:{ROOT}"


def test_nothing_allows_pickle() -> None:
    """S6: ``numpy.load`` reads pickles where it is told to; ruff's S301 knows only pickle."""
    for path in (ROOT / "trtbuild").rglob("*.py"):
        assert "allow_pickle=True" not in path.read_text(), path


def test_nothing_is_unpickled_and_no_socket_is_opened(tmp_path: Path) -> None:
    """S6 and S7: a build and a full hit."""
    graph = graphs.chain(tmp_path / "m.onnx", ["conv"])
    command = [sys.executable, "-m", "trtbuild", "engine", str(graph.path)]
    command += ["--precision", "fp32"]
    command += ["--backend", "onnxruntime", "--store", str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONPATH": watched(tmp_path), "TRTBUILD_SANDBOX": "off"}
    trace: list[str] = []
    if shutil.which("strace"):
        trace = [
            "strace",
            "-f",
            "-qq",
            "-e",
            "trace=connect,bind",
            "-o",
            str(tmp_path / "calls"),
        ]
    for _ in range(2):
        done = subprocess.run(
            [*trace, *command], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        seen = (tmp_path / "seen").read_text()
        assert "START" in seen
        assert "EVENT" not in seen
        if trace:
            calls = (tmp_path / "calls").read_text()
            assert "AF_INET" not in calls
            assert "AF_UNIX" not in calls


def test_onnx_runtime_reports_to_nobody(tmp_path: Path) -> None:
    """Its telemetry opens a cache of events when a model is opened, and sends it later."""
    graph = graphs.chain(tmp_path / "m.onnx", ["conv"])
    program = (
        "import sys, {first}\n"
        "import onnxruntime\n"
        "onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
    )
    silent = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME"}
    kept = {name: value for name, value in os.environ.items() if name not in silent}
    written = {}
    for first in ("trtbuild", "json"):  # the second shows that the test can fail
        home = tmp_path / first
        home.mkdir()
        command = [sys.executable, "-c", program.format(first=first), str(graph.path)]
        environment = {**kept, "PYTHONPATH": str(ROOT), "HOME": str(home)}
        subprocess.run(command, env=environment, check=True, timeout=60)
        written[first] = sum(path.is_file() for path in home.rglob("*"))
    assert written["trtbuild"] == 0
    release = tuple(map(int, version("onnxruntime").split(".")[:2]))
    assert written["json"] > 0 or release < (1, 29)
