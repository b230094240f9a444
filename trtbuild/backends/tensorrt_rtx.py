"""TensorRT-RTX: builds engines for GPUs ahead of time, on machines with and without one.

This module is read on the way to a cache hit and imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.backends import Availability, gpu, processor
from trtbuild.backends import fingerprint as fingerprints
from trtbuild.backends.scheme import Scheme
from trtbuild.engine import Target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trtbuild.engine import BuildRecord, Fingerprint, Precision, Setting, ShapeRange
    from trtbuild.graph import Graph

NAME = "tensorrt-rtx"
_CUDA_FLAVORS = ("cu13", "cu12")
_INSTALL = "trtbuild[rtx]"

OPTIONS: Mapping[str, Setting] = {"optimization_level": 3, "workspace_mib": 4096}
"""3 is TensorRT's own default. Its default workspace is 64 GiB, more than any GPU that these
engines are for has: an engine could need scratch memory that its device lacks. 4 GiB leaves
half of an 8 GiB card to weights and activations, and makes the bound a part of the key."""

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")

SCHEME = Scheme(
    name="tensorrt-rtx-s8",
    activation="int8",
    requantize_outputs=(),
    bias="float",
    compute=("Conv", "Gemm", "MatMul"),
    carriers=(),
)
"""Checked with the builder for sm_89: Conv (depthwise too), Gemm and MatMul with Q/DQ on their
inputs compute in Int8. ConvTranspose does not: its weights are dequantized first. The builder
requantizes behind a layer by itself, so outputs need no pair, and a float bias joins that
step."""

ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""What TensorRT-RTX 1.7 can name as a compute capability."""


def targets(archs: tuple[str, ...]) -> tuple[Availability, ...]:
    """Return what is said of each architecture in ``archs``.

    Without any: this machine's GPUs that can be built for, or every architecture if it has
    none.
    """
    here = gpu.archs()
    wanted = archs or tuple(dict.fromkeys(arch for arch in here if arch in ARCHS)) or ARCHS
    return tuple(_availability(arch, here) for arch in wanted)


def _availability(arch: str, here: tuple[str, ...]) -> Availability:
    cannot_build = ""
    if arch not in ARCHS:
        cannot_build = (
            f"{arch} is not supported by TensorRT-RTX: it builds for {', '.join(ARCHS)}"
        )
    elif not fingerprints.has_module("tensorrt_rtx"):
        cannot_build = f"TensorRT-RTX is not installed: pip install '{_INSTALL}'"
    cannot_run = cannot_build
    if not cannot_run and not here:
        cannot_run = "no NVIDIA GPU or driver on this machine: run the engine on one"
    elif not cannot_run and arch not in here:
        cannot_run = (
            f"this machine's GPU is {', '.join(here)}: run the engine on one that is {arch}"
        )
    target = Target(backend=NAME, arch=arch, os=processor.os_name())
    return Availability(target=target, cannot_build=cannot_build, cannot_run=cannot_run)


def fingerprint(target: Target) -> Fingerprint:
    """Return the installed TensorRT-RTX: its version, and a digest of its libraries' files."""
    flavor = next(
        (f for f in _CUDA_FLAVORS if fingerprints.version(f"tensorrt_rtx_{f}_libs")),
        _CUDA_FLAVORS[0],
    )
    names = (f"tensorrt_rtx_{flavor}_libs", f"tensorrt_rtx_{flavor}_bindings")
    return fingerprints.installed(target.backend, names, _INSTALL)


def preflight(graph: Graph, target: Target, precision: Precision) -> None:
    """Refuse a graph that TensorRT-RTX would refuse, compute otherwise, or die of.

    Raises:
        BuildError: the message names the node.
    """
    from trtbuild.backends import trt_preflight  # noqa: PLC0415  heavy: reads ONNX

    trt_preflight.check(graph, target, precision)


def build(
    graph: Graph,
    profiles: tuple[tuple[ShapeRange, ...], ...],
    settings: Mapping[str, Setting],
    target: Target,
    out: Path,
) -> BuildRecord:
    """Write the engine of ``graph`` for ``target`` to ``out``, in a child process.

    Raises:
        BuildError: TensorRT-RTX refuses the graph, a profile or a setting.
        MissingBackendError: TensorRT-RTX is not installed.
    """
    fingerprint(target)  # raises with the install line, before an import would without one
    from trtbuild.backends import _trt  # noqa: PLC0415  heavy: onnx and 230 MB of library

    unknown = [name for name in settings if name not in OPTIONS]
    if unknown:
        message = f"tensorrt-rtx honors {list(OPTIONS)}, got {unknown}"
        raise ValueError(message)
    return _trt.build(graph, profiles, {**OPTIONS, **settings}, target, out)
