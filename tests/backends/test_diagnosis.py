"""The words for each way in which a builder can end."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from trtbuild.backends import diagnosis
from trtbuild.backends.job import BuildRequest
from trtbuild.engine import Target
from trtbuild.graph import Graph
from trtbuild.recipe import Limits

REQUEST = BuildRequest(
    graph=Graph(path=Path("m.onnx"), sha256="0", inputs=(), outputs=()),
    profiles=(),
    settings=(),
    target=Target(backend="tensorrt-rtx", arch="sm_89", os="linux-x86_64"),
    out=Path("engine"),
)
NOISE = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError)"


def death(returncode: int, output: str = "", doing: str = "building") -> diagnosis.Death:
    return diagnosis.Death(returncode=returncode, timed_out=False, doing=doing, output=output)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (death(-signal.SIGSEGV), ["SIGSEGV while building", "onnx.checker"]),
        (death(-signal.SIGFPE), ["SIGFPE", "Div and Mod"]),
        (death(-signal.SIGKILL), ["SIGKILL", "memory"]),
        (death(-signal.SIGABRT, "free(): invalid"), ["SIGABRT", "free(): invalid"]),
        (death(-64), ["crashed with"]),
        (death(1, "Traceback\nValueError: x"), ["code 1", "ValueError: x", "doctor"]),
        (death(-signal.SIGABRT, "std::bad_alloc"), ["ran out of memory", "machine's memory"]),
        (death(-signal.SIGSEGV, doing=""), ["crashed with SIGSEGV: "]),
    ],
)
def test_an_end_is_explained(end: diagnosis.Death, words: list[str]) -> None:
    message = diagnosis.of_death(REQUEST, Limits(), end)
    assert message.startswith("m.onnx: the builder of tensorrt-rtx:sm_89")
    assert all(word in message for word in words), message


def test_noise_is_dropped_from_the_last_words() -> None:
    assert diagnosis.last_lines(f"real cause\n{NOISE}\n") == "real cause"
