"""What is said of this machine: its processor, its GPUs, its installed libraries."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

from trtbuild.backends import (
    backend,
    distributions,
    fingerprint,
    gpu,
    memory,
    processor,
    runtime,
)
from trtbuild.engine import Target
from trtbuild.errors import MissingBackendError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("machine", "flags", "word", "saturates"),
    [
        ("x86_64", "sse2 avx2 avx512f avx512_vnni", "x86_64-avx512_vnni", False),
        ("x86_64", "avx2 avx_vnni", "x86_64-avx_vnni", False),
        ("x86_64", "avx2 avx512f", "x86_64-avx512f", True),
        ("x86_64", "avx2", "x86_64-avx2", True),
        ("x86_64", "sse2", "x86_64", True),
        ("aarch64", "asimd asimddp i8mm", "aarch64-i8mm", False),
        ("aarch64", "asimd asimddp", "aarch64-dotprod", False),
        ("riscv64", "v", "riscv64", False),
    ],
)
def test_a_processor_is_named_by_what_decides_its_kernels(
    machine: str, flags: str, word: str, *, saturates: bool
) -> None:
    text = f"processor : 0\nflags\t\t: {flags}\nmodel : x\nflags : other\n"
    assert processor.word(machine, processor.flags(text)) == word
    assert processor.saturates(word) == saturates


def test_this_processor_has_a_name() -> None:
    assert processor.arch().startswith(processor.os_name().rpartition("-")[2])


def test_gpus_are_named_as_targets_are() -> None:
    assert all(arch.startswith("sm_") for arch in gpu.archs())


def test_the_peak_of_memory_only_grows() -> None:
    before = memory.peak_rss_bytes()
    block = bytearray(b"x" * (64 << 20))
    assert memory.peak_rss_bytes() >= max(before, len(block))


def _install(folder: Path, content: str) -> None:
    info = folder / "somelib-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somelib\nVersion: 1.2\n")
    (info / "RECORD").write_text(content)


RECORD = "somelib/a.so,sha256=aaa,10\nsomelib/b.py,sha256=bbb,5\n"
SAME = (
    "somelib/b.py,sha256=bbb,5\nsomelib/__pycache__/b.cpython-311.pyc,,\n"
    "somelib/a.so,sha256=aaa,10\nsomelib-1.2.dist-info/INSTALLER,sha256=zzz,4\n"
)
OTHER = "somelib/a.so,sha256=other,10\nsomelib/b.py,sha256=bbb,5\n"


def test_a_build_is_what_its_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for index, content in enumerate((RECORD, SAME, OTHER)):
        _install(tmp_path / str(index), content)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", [str(tmp_path / str(index))])
            found.append(fingerprint.installed("some", ("somelib",), "somelib"))
    assert found[0].version == "1.2"
    assert found[0] == found[1]
    assert found[0].build != found[2].build


def test_a_library_that_is_not_installed_has_an_install_line() -> None:
    with pytest.raises(MissingBackendError, match=r"pip install 'trtbuild\[x\]'"):
        fingerprint.installed("x", ("no-such-distribution",), "trtbuild[x]")
    assert not distributions.version("no-such-distribution")
    assert not fingerprint.has_module("no_such_module")
    assert fingerprint.has_module("numpy")


def test_the_fingerprint_of_a_backend_has_the_version_of_its_library() -> None:
    here = Target(backend="onnxruntime", arch=processor.arch(), os=processor.os_name())
    found = backend("onnxruntime").fingerprint(here)
    assert found.version == metadata.version("onnxruntime")
    assert found.backend == "onnxruntime"


LIGHT = """
import sys
from trtbuild.backends import NAMES, backend
for name in NAMES:
    module = backend(name)
    for entry in module.targets(()):
        if not entry.cannot_build:
            module.fingerprint(entry.target)
print(*sorted({m.partition(".")[0] for m in sys.modules}))
"""


def test_what_a_cache_hit_asks_of_a_backend_loads_nothing_heavy() -> None:
    child = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True, timeout=60
    )
    heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "tensorrt_rtx", "torch"}
    assert not heavy & set(child.stdout.split())


def test_the_runtime_halves_read_no_onnx() -> None:
    code = (
        "import sys; from trtbuild.backends import NAMES, runtime\n"
        "for name in NAMES: runtime(name)\nprint(*sys.modules)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert not {"onnx", "onnx_ir", "torch"} & set(child.stdout.split())
    assert runtime("onnxruntime").cannot_run(
        Target(backend="onnxruntime", arch="other", os="other")
    )
