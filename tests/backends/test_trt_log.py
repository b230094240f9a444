"""What TensorRT logs, and what is made of it: errors, findings, advice; builds that go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from trtbuild.backends import _trt
from trtbuild.backends.trt_log import Messages, Refusal, remedy
from trtbuild.engine import Target
from trtbuild.errors import BuildError

if TYPE_CHECKING:
    from pathlib import Path


FULL = (
    "[virtualMemoryBuffer.cpp::resizePhysical] Error Code 2: OutOfMemory (Requested size was "
    "17179869184 bytes.)"
    "\n[defaultAllocator.cpp::allocate::19] Error Code 1: Cuda Runtime (out of memory)"
    "\nRequested amount of GPU memory (4294967296 bytes) could not be allocated."
).splitlines()
_Build = _trt._Build  # noqa: SLF001  its steps, without a library
_serialize = _Build._serialize  # noqa: SLF001  as above


def test_a_gpu_without_memory_left_is_told_from_a_machine_without(tmp_path: Path) -> None:
    for text in FULL:
        messages = Messages()
        refusal = Refusal(tmp_path / "m.onnx", "TensorRT 10.13 for sm_89", messages)
        error = str(refusal.error("built an engine that its runtime refuses", [text]))
        assert "The memory of the GPU was not enough" in error
        assert "free the GPU (see nvidia-smi)" in error
        assert "'onnxruntime'" not in error
    without = Refusal(tmp_path / "m.onnx", "TensorRT-RTX 1.7 for sm_89", Messages())
    with pytest.raises(MemoryError):
        without.error("cannot build the model", FULL[:1])


def test_tactics_that_get_no_memory_are_counted_only_while_they_are_timed() -> None:
    messages = Messages()
    messages.times_tactics = True
    for text in FULL:
        messages.take("ERROR", text)
    messages.take("WARNING", "---- The current device memory allocations dump as below ----")
    messages.take(
        "WARNING",
        "[0x504200000]:134217728 :HybridGlobWriter in reserveRegion: at "
        "optimizer/common/globWriter.cpp: 246 idx: 5 time: 0.000363279",
    )
    assert messages.errors == messages.warnings == []
    (found,) = messages.degraded.findings()
    assert "no memory left, 3 times (the largest wanted 16384 MiB)" in found
    messages.times_tactics = False
    messages.take("ERROR", FULL[0])
    assert len(messages.errors) == 1, "what is no tactic is an error still"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Skipping tactic 0xaa15 due to exception canImplement1", ""),
        ("Skipping tactic 0x1 due to exception an illegal memory access", "failed while they"),
        ("Skipping tactic 2 due to oom error on requested size of 4294967296", "4096 MiB"),
    ],
)
def test_a_skipped_tactic_is_told_by_its_reason(text: str, words: str) -> None:
    messages = Messages()
    messages.take("ERROR", text)
    assert messages.errors == []
    found = "".join(messages.degraded.findings())
    assert words in found
    assert bool(found) == bool(words)


class _Builder:
    """A builder that logs, and returns this plan."""

    def __init__(self, messages: Messages, plan: bytes | None) -> None:
        self._messages = messages
        self._plan = plan

    def build_serialized_network(self, _network: object, _config: object) -> bytes | None:
        self._messages.take("ERROR", "something that the build goes on after")
        self._messages.take("ERROR", FULL[0])
        return self._plan


def _building(folder: Path, plan: bytes | None) -> tuple[_Build, Messages]:
    messages = Messages()
    build = object.__new__(_Build)
    vars(build).update(
        _messages=messages,
        _builder=_Builder(messages, plan),
        _network=None,
        _config=None,
        _target=Target(backend="tensorrt", arch="sm_90", os="linux-x86_64"),
        _refusal=Refusal(folder / "m.onnx", "TensorRT 11.4 for sm_90", messages),
    )
    return build, messages


def test_a_build_that_gives_an_engine_has_not_failed(tmp_path: Path) -> None:
    build, messages = _building(tmp_path, b"e" * 100)
    assert _serialize(build) == b"e" * 100
    assert messages.warnings == ["something that the build goes on after"]
    assert messages.errors == []


def test_a_build_that_gives_none_for_want_of_gpu_memory_says_so(tmp_path: Path) -> None:
    build, _ = _building(tmp_path, None)
    with pytest.raises(BuildError, match=r"goes on after; .*OutOfMemory.*What to do: free the"):
        _serialize(build)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "Could not find any implementation for node c. Timing cache disabled",
            "raise the build option workspace_mib",
        ),
        ("is not in ITimingCache", "build once with --timing-cache auto"),
        ("INT32 is a word of many errors", "change what it names"),
        ("b_DequantizeLinear: input has type Int32 but must have type FP8", "leave biases"),
        ("reads the inputs as {'i': 'int32'}, the model has {'i': 'int64'}", "TensorRT 10"),
    ],
)
def test_an_error_gets_the_remedy_of_its_cause(text: str, words: str) -> None:
    assert words in remedy(text, "TensorRT 8.6 for sm_86")
