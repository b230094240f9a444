"""A TensorRT that is installed and does not work: its own reason, and what to install."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from tests.backends import graphs
from trtbuild.backends import _trt, distributions, fingerprint, gpu, tensorrt, trt_api
from trtbuild.backends.trt_log import Messages, Refusal, remedy
from trtbuild.errors import BuildError, MissingBackendError

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


class OnDla:
    """A runtime or builder of a machine with so many DLA cores, which takes no others."""

    def __init__(self, cores: int) -> None:
        self.num_DLA_cores = cores  # TensorRT's name
        self._core = -1

    @property
    def DLA_core(self) -> int:  # noqa: N802  TensorRT's name
        return self._core

    @DLA_core.setter
    def DLA_core(self, core: int) -> None:  # noqa: N802  TensorRT's name
        if core < self.num_DLA_cores:
            self._core = core


def test_a_runtime_is_placed_on_the_dla_core_of_its_engine() -> None:
    found: Any = SimpleNamespace(title="TensorRT 10.3.0")
    orin, desktop = OnDla(2), OnDla(0)
    trt_api.place_on_dla(found, orin, 1)
    assert orin.DLA_core == 1
    trt_api.place_on_dla(found, desktop, -1)
    with pytest.raises(MissingBackendError, match=r"core 0, this machine has 0: move to a Jet"):
        trt_api.place_on_dla(found, desktop, 0)


@pytest.mark.parametrize(
    ("core", "cores", "quantized", "words"),
    [
        (-1, 0, False, ""),
        (1, 2, True, ""),
        (0, 0, True, "finds no DLA on this machine.*name a core"),
        (2, 2, True, "finds 2 DLA cores.*asked is core 2"),
        (0, 2, False, "nothing in FP32 on DLA.*--precision fp16 or int8"),
    ],
)
def test_dla_is_refused_where_there_is_none_and_for_fp32(
    core: int, cores: int, *, quantized: bool, words: str, tmp_path: Path
) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", tensorrt.SCHEME if quantized else None)
    build = object.__new__(_trt._Build)  # noqa: SLF001  its step, without a library
    vars(build).update(
        _values={"dla_core": core},
        _builder=OnDla(cores),
        _refusal=Refusal(graph.path, "TensorRT 10.3.0 for sm_87", Messages()),
    )
    staged: Any = SimpleNamespace(model=onnx.load(graph.path))
    raises = pytest.raises(BuildError, match=words) if words else contextlib.nullcontext()
    with raises:
        build._expect_dla(staged)
