"""TensorRT proper: builds engines for the GPUs of this machine, which it times kernels on.

This module is read on the way to a cache hit and imports nothing heavy. How graphs are
quantized for it is TensorRT-RTX's way: one network serves both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.backends import (
    Availability,
    compatibility,
    distributions,
    gpu,
    processor,
    trt_settings,
)
from trtbuild.backends import fingerprint as fingerprints
from trtbuild.backends.tensorrt_rtx import RESTS, SCHEME, SCHEMES, WEIGHTS
from trtbuild.engine import Target
from trtbuild.errors import MissingBackendError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtbuild.backends.job import BuildRequest
    from trtbuild.engine import BuildRecord, Fingerprint, Precision, Rest, Setting
    from trtbuild.graph import Graph

__all__ = ["OPTIONS", "RESTS", "SCHEME", "SCHEMES", "WEIGHTS"]

NAME = "tensorrt"
OPTIONS: Mapping[str, Setting] = trt_settings.OPTIONS
REFUSED: Mapping[str, str] = {}
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8", "int4", "nvfp4")

_INSTALL = "trtbuild[tensorrt]"
_OLDEST = (((10, 5), 75, "10.4"), ((9, 0), 70, "8.6"), ((8, 6), 50, "8.5"))
"""From which version on which architecture is the oldest, and the last that had older ones: no
Volta since 10.5 (its release notes), no Pascal since 9 (NVIDIA/TensorRT 3826), no Kepler since
8.6 (release notes of 8.5)."""

_SINCE: Mapping[Precision, int] = {"bf16": 80, "fp8": 89, "int4": 80, "nvfp4": 100}
"""The first architecture with a format."""


def targets(archs: tuple[str, ...]) -> tuple[Availability, ...]:
    """Return what is said of each architecture in ``archs``, of this machine's without any."""
    here = gpu.gpus()
    wanted = archs or tuple(dict.fromkeys(each.arch for each in here)) or ("gpu",)
    return tuple(_availability(arch, here) for arch in wanted)


def rest() -> Rest:
    """Return what computes around quantized layers; 8.6 reads only the scales of FP32."""
    library = distributions.version(_layout()[0])
    return "fp32" if library.startswith("8.") else RESTS[0]


def cannot_compute(arch: str, precision: Precision) -> str:
    """Return why no engine for ``arch`` computes in ``precision``, or an empty string."""
    since = _SINCE.get(precision, 0)
    if int(arch.removeprefix("sm_")) >= since:
        return ""
    return (
        f"{arch} has no {precision.upper()}, which comes with sm_{since}: ask for int8 or fp16"
    )


def _availability(arch: str, here: tuple[gpu.Gpu, ...]) -> Availability:
    model = next((each.identity for each in here if each.arch == arch), "")
    target = Target(backend=NAME, arch=arch, os=processor.os_name(), device=model)
    reason = _cannot_build(arch, here)
    return Availability(target=target, cannot_build=reason, cannot_run=reason)


def _cannot_build(arch: str, here: tuple[gpu.Gpu, ...]) -> str:
    if not fingerprints.has_module("tensorrt"):
        also = "" if here else f". Then it needs a GPU: {_no_gpu()}"
        return f"TensorRT is not installed: pip install '{_INSTALL}'{also}"
    if not here:
        return _no_gpu()
    known = dict.fromkeys(each.arch for each in here)
    if arch not in known:
        return (
            f"TensorRT builds for the GPU it runs on, here {', '.join(known)}: build on a "
            f"machine that has {arch}, or for tensorrt-rtx:{arch}, which needs none"
        )
    return _old_gpu(arch) or _old_driver(gpu.driver_cuda(), _layout()[0])


def _no_gpu() -> str:
    return (
        f"TensorRT times its kernels on a GPU, and there is none: {gpu.why_none()}. "
        "--backend tensorrt-rtx builds without one"
    )


def _old_gpu(arch: str) -> str:
    """Return why the installed TensorRT builds nothing for an architecture, or nothing."""
    version = distributions.version(_layout()[0])
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    least, until = next((row[1:] for row in _OLDEST if numbers >= row[0]), (0, ""))
    if int(arch.removeprefix("sm_")) >= least:
        return ""
    return (
        f"TensorRT {version} builds for sm_{least} and newer: install TensorRT {until} or "
        "older, or use another GPU"
    )


def _old_driver(driver: tuple[int, int], library: str) -> str:
    """Return why a driver for CUDA ``driver`` does not run a distribution of TensorRT."""
    major = fingerprints.cuda_major(library)
    if driver[0] >= major:
        return ""
    other = "; or pip install tensorrt-cu12" if major > min(fingerprints.CUDA_MAJORS) else ""
    return (
        f"the NVIDIA driver is for CUDA {driver[0]}.{driver[1]}, and {library} "
        f"{distributions.version(library)} needs {major}.0: install driver "
        f"{compatibility.DRIVERS[major]} or newer{other}"
    )


def _layout() -> tuple[str, ...]:
    return fingerprints.layout(NAME)


def fingerprint(target: Target) -> Fingerprint:
    """Return the installed TensorRT: its version, and a digest of its libraries' files."""
    return fingerprints.installed(target.backend, _layout(), _INSTALL)


def preflight(graph: Graph, target: Target, precision: Precision) -> None:
    """Refuse a graph that TensorRT would refuse, compute otherwise, or die of.

    Raises:
        BuildError: the message names the node, or says that the weights alone fill the GPU.
    """
    from trtbuild.backends import trt_preflight  # noqa: PLC0415  heavy: reads ONNX

    trt_preflight.check(graph, target, precision)
    sizes = [each.memory_bytes for each in gpu.gpus() if each.arch == target.arch]
    trt_preflight.check_memory(graph, target, max(sizes, default=0))


def cannot_set(settings: Mapping[str, Setting]) -> str:
    """Return why these settings do not fit, or an empty string."""
    return trt_settings.problem(settings)


def gpus(target: Target) -> tuple[str, ...]:
    """Return the PCI bus ids of the GPUs here that are of the target's model."""
    fits = (target.arch, target.device)
    return tuple(
        bus
        for bus, each in zip(gpu.pci_bus_ids(), gpu.gpus(), strict=True)
        if fits in ((each.arch, ""), (each.arch, each.identity))
    )


def build(request: BuildRequest) -> BuildRecord:
    """Write the engine that is asked for, timed on ``request.gpu`` or a GPU of its model.

    Raises:
        BuildError: TensorRT refuses the graph, a profile or a setting.
        MissingBackendError: TensorRT or the GPU is not here.
    """
    target = request.target
    fingerprint(target)  # raises with the install line, before an import would without one
    fits = gpus(target)
    bus = request.gpu or next(iter(fits), "")
    if bus not in fits:
        reason = _cannot_build(target.arch, gpu.gpus()) or "its GPU is not here"
        message = f"{target}: {reason}"
        raise MissingBackendError(message)
    gpu.make_current(gpu.pci_bus_ids().index(bus))
    from trtbuild.backends import _trt  # noqa: PLC0415  heavy: onnx and the library

    unknown = [name for name, _ in request.settings if name not in OPTIONS]
    if unknown:
        message = f"{NAME} honors {list(OPTIONS)}, got {unknown}"
        raise ValueError(message)
    return _trt.build(request, {**OPTIONS, **dict(request.settings)})
