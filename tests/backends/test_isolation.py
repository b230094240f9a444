"""What happens when a builder dies, hangs, or takes too much."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.backends import building, graphs
from trtbuild.backends import diagnosis, job
from trtbuild.backends.isolation import build_isolated
from trtbuild.engine import Target
from trtbuild.errors import BuildError, MissingBackendError, UsageError
from trtbuild.recipe import Limits

if TYPE_CHECKING:
    from trtbuild.graph import Graph

LIMITS = Limits(build_seconds=120)
LONG = 60_000
"""A chain of so many nodes takes a backend many seconds, and no memory to speak of."""


@pytest.mark.rtx
def test_a_crash_names_the_signal_and_the_moment(tmp_path: Path) -> None:
    graph = graphs.division(tmp_path / "m.onnx", 0)
    wish = building.request(graph, building.rtx("sm_89"), tmp_path / "engine")
    with pytest.raises(BuildError, match=r"crashed with SIGFPE while .*Div and Mod"):
        build_isolated(wish, LIMITS)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


SMALL_STACK = """
import resource, sys
from pathlib import Path
from tests.backends import building
from trtbuild.graph.model import read_graph
_, hard = resource.getrlimit(resource.RLIMIT_STACK)
resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, hard))
graph = read_graph(Path(sys.argv[1]))
record = building.build(graph, building.rtx("sm_89"), graph.path.with_name("engine"))
print(len(record.layers.layers))
"""


def _line_of_nodes(path: Path, count: int) -> Graph:
    draw = graphs.Drawing()
    tensor = "x"
    for index in range(count):
        tensor = draw.node("Neg" if index % 2 else "Sin", [tensor], f"n{index}")
    return draw.save(path, tensor, (4,))


@pytest.mark.rtx
def test_a_chain_that_overflows_the_stack_of_the_caller_builds(tmp_path: Path) -> None:
    graph = _line_of_nodes(tmp_path / "m.onnx", 800)
    command = [sys.executable, "-c", SMALL_STACK, str(graph.path)]
    child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) > 0


@pytest.mark.rtx
def test_a_build_that_takes_too_long_is_killed_and_says_at_what(tmp_path: Path) -> None:
    graph = _line_of_nodes(tmp_path / "m.onnx", 3000)
    wish = building.request(graph, building.rtx("sm_89"), tmp_path / "engine")
    with pytest.raises(BuildError, match=r"did not end within 3 s and was killed while .*ing"):
        build_isolated(wish, Limits(build_seconds=3))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_build_that_hangs_is_killed(tmp_path: Path) -> None:
    graph = _line_of_nodes(tmp_path / "m.onnx", LONG)
    wish = building.request(graph, building.ORT, tmp_path / "engine")
    with pytest.raises(BuildError, match="did not end within 1 s and was killed"):
        build_isolated(wish, Limits(build_seconds=1))


INTERRUPTED = """
import sys
from pathlib import Path
from tests.backends import building
from trtbuild.graph.model import read_graph
graph = read_graph(Path(sys.argv[1]))
building.build(graph, building.ORT, graph.path.with_name("engine"))
"""


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _descendants(pid: int) -> list[int]:
    """A sandbox is a process, and the first of its own, between a caller and a builder."""
    found = _children(pid)
    return [*found, *(below for child in found for below in _descendants(child))]


def _is_alive(pid: int) -> bool:
    """Return whether a process runs; one that only waits to be collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_no_builder_outlives_its_caller(end: signal.Signals, tmp_path: Path) -> None:
    graph = _line_of_nodes(tmp_path / "m.onnx", LONG)
    command = [sys.executable, "-c", INTERRUPTED, str(graph.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as caller:
        while not any(tmp_path.glob(".build-*/progress")):
            assert caller.poll() is None
            time.sleep(0.05)
        builders = _descendants(caller.pid)
        assert builders
        caller.send_signal(end)
        caller.communicate(timeout=60)
    assert caller.returncode != 0
    for _ in range(100):
        if not any(map(_is_alive, builders)):
            break
        time.sleep(0.05)
    assert not any(map(_is_alive, builders))
    if end == signal.SIGINT:
        assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_build_beyond_its_memory_limit_says_so(tmp_path: Path) -> None:
    draw = graphs.Drawing()
    weight = draw.constant("weight", np.ones((4096, 4096), np.float32))
    product = draw.node("MatMul", ["x", weight], "product")
    graph = draw.save(tmp_path / "m.onnx", product, ("batch", 4096))
    wish = building.request(graph, building.ORT, tmp_path / "engine")
    with pytest.raises(BuildError, match=r"ran out of memory.*limit is 256 MiB"):
        build_isolated(wish, Limits(build_memory_mib=256))
    assert not wish.out.exists()


@pytest.mark.rtx
def test_a_library_beyond_its_memory_limit_says_so(tmp_path: Path) -> None:
    draw = graphs.Drawing()
    weight = draw.constant("weight", np.ones((4096, 4096), np.float32))
    product = draw.node("MatMul", ["x", weight], "product")
    graph = draw.save(tmp_path / "m.onnx", product, ("batch", 4096))
    wish = building.request(graph, building.rtx("sm_89"), tmp_path / "engine")
    with pytest.raises(BuildError, match=r"ran out of memory.*limit is 600 MiB"):
        build_isolated(wish, Limits(build_memory_mib=600))


def test_errors_keep_their_class_and_message() -> None:
    failure = job.Failure(error="MissingBackendError", message="install it")
    error = job.error_of(failure)
    assert isinstance(error, MissingBackendError)
    assert str(error) == "install it"
    assert type(job.error_of(job.Failure(error="KeyError", message="x"))) is BuildError


def test_an_unknown_backend_is_refused_by_the_child(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    target = Target(backend="none", arch="any", os="any")
    with pytest.raises(UsageError, match="no backend is called 'none'"):
        build_isolated(building.request(graph, target, tmp_path / "engine"), LIMITS)


def test_a_child_without_room_for_its_outcome_says_how_much(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    target = Target(backend="none", arch="any", os="any")
    wish = building.request(graph, target, tmp_path / "engine")
    work = job.Job(request=wish, memory_bytes=0, processor_s=60, parent_pid=0)
    (tmp_path / "job.json").write_bytes(job.encode(work))
    (tmp_path / "outcome.json").symlink_to("/dev/full")
    command = [sys.executable, "-m", "trtbuild.backends.child", str(tmp_path / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == diagnosis.NO_ROOM, done.stderr
    said = diagnosis.of_no_room(wish, diagnosis.last_lines(done.stdout))
    assert re.search(r"no room for its result: \d+ bytes to write, \d+ free\. Free space", said)
