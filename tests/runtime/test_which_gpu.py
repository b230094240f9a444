"""Of several GPUs in a machine, one is opened, timed, watched and locked: the same."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from trtbuild.backends import fingerprint, gpu, gpu_lock
from trtbuild.backends.gpu import Gpu
from trtbuild.backends.meter import NoMeter, open_meter
from trtbuild.engine import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = (("sm_75", "T4"), ("sm_80", "A30"), ("sm_80", "A100"), ("sm_90", "H100"))


def target(arch: str, device: str = "") -> Target:
    return Target(backend="tensorrt", arch=arch, os="linux-x86_64", device=device)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuple(Gpu(arch=a, name=n, identity=n, memory_bytes=1) for a, n in HERE)
    monkeypatch.setattr(gpu, "gpus", lambda: found)
    monkeypatch.setattr(gpu, "pci_bus_ids", lambda: tuple(n for _, n in HERE))
    monkeypatch.setattr(fingerprint, "has_module", lambda _name: True)


CASES = [
    (target("sm_80", "A100"), -1, 2),
    (target("sm_80", "A100"), 1, 1),
    (target("sm_80", "A40"), -1, 1),
    (target("sm_80"), -1, 1),
    (target("sm_86"), -1, 1),
    (target("sm_120"), -1, 1),
    (target("x86-64-v3"), -1, -1),
]


@pytest.mark.parametrize(("wanted", "device", "index"), CASES)
def test_the_very_model_goes_before_its_architecture_and_that_before_others_of_ampere(
    wanted: Target, device: int, index: int
) -> None:
    assert gpu.index_for(wanted, device) == index


def test_the_gpu_that_is_locked_and_watched_is_the_one_that_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from trtbuild.backends import nvml  # noqa: PLC0415  needs nvidia-ml-py

    @contextlib.contextmanager
    def opened(bus: str) -> Iterator[NoMeter]:
        yield NoMeter(bus)

    monkeypatch.setattr(nvml, "opened", opened)
    wanted = (target("sm_80", "A100"),)
    assert gpu_lock.measured(wanted) == ("A100",)
    with open_meter(wanted) as meter:
        assert meter.absent["reasons"] == "A100"
    two = (target("sm_80", "A100"), target("sm_80", "A30"))
    assert gpu_lock.measured((*two, target("x86-64-v3"))) == ("A100", "A30")
    with open_meter(two) as meter:
        assert meter.absent["reasons"].startswith("no single GPU of this machine runs all")
