"""What is refused before TensorRT sees a byte: each lack has its own remedy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec
import pytest

from trtbuild.backends import gpu, trt_session
from trtbuild.backends.session import SessionOptions
from trtbuild.backends.trt_session import Library, Machine, check
from trtbuild.engine import EngineKey, Fingerprint, Layers, Manifest, Target
from trtbuild.errors import MissingBackendError, TrustError, UsageError

if TYPE_CHECKING:
    from trtbuild.engine import Setting
    from trtbuild.errors import TrtbuildError

VERSION = "11.4.0.106"
LINUX = "linux-x86_64"
FULL = Library(module="tensorrt", version=VERSION, cuda_major=13)
LEAN = Library(module="tensorrt_lean", version=VERSION, cuda_major=13)
H100 = Machine(
    os=LINUX,
    gpus=(("sm_90", "NVIDIA H100"),),
    absence="",
    driver=(13, 0),
    installed=FULL,
    missing=(),
)


def manifest(
    version: str = VERSION, arch: str = "sm_90", device: str = "", **settings: Setting
) -> Manifest:
    key = EngineKey(
        network_sha256="0" * 64,
        profiles=(),
        settings=tuple(sorted(settings.items())),
        target=Target(backend="tensorrt", arch=arch, os=LINUX, device=device),
        fingerprint=Fingerprint(backend="tensorrt", version=version, build=""),
    )
    return Manifest(
        key=key.digest,
        preimage=key,
        sha256="1" * 64,
        bytes=1,
        inputs=(),
        outputs=(),
        layers=Layers(layers=()),
        precision_requested="fp32",
        int8_mac_share=0.0,
        fused_layers=0,
        warnings=(),
        build_seconds=1.0,
        peak_rss_bytes=0,
        created="",
        trtbuild_version="",
        recipe="{}",
    )


def on(**changes: object) -> Machine:
    return msgspec.structs.replace(H100, **changes)


@pytest.mark.parametrize(
    ("engine", "machine", "error", "parts"),
    [
        (manifest(), on(absence="no driver: install it"), MissingBackendError, ["install"]),
        (manifest(), on(installed=None), MissingBackendError, ["pip install", "'tensorrt'"]),
        (manifest(), on(missing=("pycuda",)), MissingBackendError, ["'pycuda'", "pip install"]),
        (manifest(), on(driver=(12, 8)), MissingBackendError, ["CUDA 12.8", "r580"]),
        (manifest(), on(os="linux-aarch64"), TrustError, ["linux-aarch64"]),
        (manifest(arch="sm_80"), H100, TrustError, ["sm_80", "sm_90"]),
        (
            manifest(hardware_compatible="ampere_plus"),
            on(gpus=(("sm_75", "Tesla T4"),)),
            TrustError,
            ["sm_90", "sm_75"],
        ),
        (manifest(device="NVIDIA H200"), H100, TrustError, ["NVIDIA H200", "NVIDIA H100"]),
        (manifest(version="11.3.0.1"), H100, TrustError, ["11.3.0.1", VERSION]),
        (manifest(), on(installed=LEAN), TrustError, ["lean", "version-compatible"]),
        (
            manifest(strip_plan=True, version_compatible=True),
            on(installed=LEAN),
            TrustError,
            ["without its weights", "strip_plan"],
        ),
        (manifest("10.13.0.1", version_compatible=True), H100, TrustError, ["allow_host_code"]),
        (
            manifest("8.6.1", version_compatible=True),
            H100,
            TrustError,
            ["TensorRT 8 and 10", VERSION],
        ),
    ],
)
def test_each_lack_is_told_with_its_remedy(
    engine: Manifest, machine: Machine, error: type[TrtbuildError], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        check(engine, SessionOptions(), machine)
    assert type(caught.value) is error
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("engine", "machine", "options"),
    [
        (manifest(), H100, SessionOptions()),
        (manifest(device="NVIDIA H100"), H100, SessionOptions()),
        (manifest(arch="sm_80", hardware_compatible="ampere_plus"), H100, SessionOptions()),
        (manifest(arch="sm_120", hardware_compatible="ampere_plus"), H100, SessionOptions()),
        (
            manifest("10.13.0.1", version_compatible=True),
            H100,
            SessionOptions(allow_host_code=True),
        ),
        (manifest("10.13.0.1", version_compatible=True), on(installed=LEAN), SessionOptions()),
        (
            manifest("11.2.0.1", version_compatible=True, exclude_lean_runtime=True),
            H100,
            SessionOptions(),
        ),
    ],
)
def test_what_can_run_is_let_through(
    engine: Manifest, machine: Machine, options: SessionOptions
) -> None:
    check(engine, options, machine)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (("sm_80", "A100", -1), 3),
        (("sm_80", "", -1), 1),
        (("sm_80", "A100", 2), 2),
        (("sm_90", "", -1), 1),
        (("sm_75", "", -1), 0),
    ],
    ids=["model", "architecture", "named", "several", "only"],
)
def test_an_engine_is_opened_where_it_fits(
    case: tuple[str, str, int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = (("sm_75", "T4"), ("sm_80", "A30"), ("sm_86", "A40"), ("sm_80", "A100"))
    found = [SimpleNamespace(arch=arch, identity=device) for arch, device in here]
    monkeypatch.setattr(gpu, "gpus", lambda: found)
    arch, device, named = case
    target = Target(backend="tensorrt", arch=arch, os=H100.os, device=device)
    assert gpu.index_for(target, named) == expected


def test_a_named_gpu_must_exist_and_fit() -> None:
    two = on(gpus=(("sm_90", "NVIDIA H100"), ("sm_80", "NVIDIA A100")))
    check(manifest(), SessionOptions(device=0), two)
    with pytest.raises(TrustError, match="sm_80"):
        check(manifest(), SessionOptions(device=1), two)
    with pytest.raises(TrustError, match="no GPU 2"):
        check(manifest(), SessionOptions(device=2), two)


def test_options_that_can_only_be_mistakes_are_refused() -> None:
    with pytest.raises(UsageError, match="contexts is -1"):
        SessionOptions(contexts=-1)


@pytest.mark.skipif(bool(gpu.archs()), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_says_what_to_install() -> None:
    assert "install" in gpu.why_none() or "GPU" in gpu.why_none()
    machine = trt_session.here("tensorrt")
    assert machine.absence == gpu.why_none()
    assert machine.driver == gpu.driver_cuda()
    with pytest.raises(MissingBackendError, match="cannot run here"):
        trt_session.preflight(manifest(), SessionOptions())
    target = Target(backend="tensorrt", arch="sm_90", os=LINUX)
    with pytest.raises(MissingBackendError):
        trt_session.open_session(b"x", target)
