"""A TensorRT that is installed and does not work: its own reason, and what to install."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from trtbuild.backends import distributions, fingerprint, gpu, tensorrt, trt_api
from trtbuild.backends.trt_log import Messages, remedy
from trtbuild.errors import MissingBackendError

if TYPE_CHECKING:
    from pathlib import Path

NO_CUDA = "createInferBuilder: Error Code 6: CUDA initialization failure with error: 35"


@pytest.mark.parametrize(
    "raised",
    [
        "FileNotFoundError('Could not find: libnvinfer.so.11')",
        "ImportError('Could not find: libnvinfer.so.11')",
        "RuntimeError('Could not find: libnvinfer.so.11')",
    ],
)
def test_bindings_that_cannot_be_loaded_are_told_with_the_linkers_words(
    raised: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_trt.py").write_text(f"raise {raised}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingBackendError, match=r"find: libnvinfer\.so\.11.*--force-reinst"):
        trt_api.imported("broken_trt")


def test_a_builder_that_does_not_start_is_told_with_tensorrts_reason() -> None:
    found: Any = SimpleNamespace(messages=Messages(), title="TensorRT 11.4.0.106")

    def none() -> object:
        found.messages.take("ERROR", NO_CUDA)
        raise TypeError("pybind11::init(): factory function returned nullptr")

    def dead() -> object:
        found.messages.take("ERROR", NO_CUDA)
        return object()

    for make in (none, dead):
        with pytest.raises(MissingBackendError) as caught:
            trt_api.started(found, make)
        assert "failure with error: 35" in str(caught.value)
        assert "install the NVIDIA driver" in str(caught.value)
    assert trt_api.started(found, lambda: 7) == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Error Code 9: API Usage Error (Target GPU SM 70 is not supported", "10.4 or older"),
        ("no kernel image is available for execution on the device", "newer TensorRT"),
        ("CUDA driver version is insufficient for CUDA runtime version", "NVIDIA driver"),
    ],
)
def test_a_gpu_or_driver_that_does_not_fit_is_told_what_to_install(
    text: str, words: str
) -> None:
    assert words in remedy(text, "TensorRT 11.4 for sm_70")


@pytest.mark.parametrize(
    ("arch", "version", "words"),
    [
        ("sm_70", "11.4.0.106", "sm_75 and newer: install TensorRT 10.4 or older"),
        ("sm_70", "10.5.0", "TensorRT 10.4"),
        ("sm_70", "10.4.0", ""),
        ("sm_61", "10.4.0", "sm_70 and newer: install TensorRT 8.6"),
        ("sm_61", "8.6.1", ""),
        ("sm_75", "11.4.0.106", ""),
        ("sm_120", "11.4.0.106", ""),
    ],
)
def test_a_gpu_that_is_too_old_is_refused_before_a_build(
    arch: str, version: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = gpu.Gpu(arch=arch, name="G", identity="G", memory_bytes=1)
    monkeypatch.setattr(gpu, "gpus", lambda: (here,))
    monkeypatch.setattr(gpu, "driver_cuda", lambda: (13, 3))
    monkeypatch.setattr(fingerprint, "has_module", lambda _: True)
    monkeypatch.setattr(distributions, "version", lambda _: version)
    (found,) = tensorrt.targets(())
    assert words in found.cannot_build
    assert bool(found.cannot_build) == bool(words)
