"""TensorRT-RTX: builds engines for GPUs ahead of time, on machines with and without one.

This module is read on the way to a cache hit and imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from trtbuild.backends import Availability, distributions, gpu, processor, trt_settings
from trtbuild.backends import fingerprint as fingerprints
from trtbuild.backends.scheme import Scheme, WeightScheme
from trtbuild.engine import Target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtbuild.backends.job import BuildRequest
    from trtbuild.engine import BuildRecord, Fingerprint, Precision, Rest, Setting
    from trtbuild.graph import Graph

NAME = "tensorrt-rtx"
_CUDA_FLAVORS = ("cu13", "cu12")
_INSTALL = "trtbuild[rtx]"

_HONORED = (
    "avg_timing_iterations",
    "direct_io",
    "distributive_independence",
    "l2_limit_kib",
    "max_aux_streams",
    "max_num_tactics",
    "optimization_level",
    "refit",
    "refit_identical",
    "refit_individual",
    "sparse_weights",
    "strict_nans",
    "strip_plan",
    "tiling_optimization_level",
    "weight_streaming",
    "workspace_mib",
)

OPTIONS: Mapping[str, Setting] = {name: trt_settings.OPTIONS[name] for name in _HONORED}
"""4 GiB of workspace leave half of an 8 GiB card to weights and activations. ``sparse_weights``
lets the builder take kernels for 2:4 weights: a recipe's ``sparsity`` sets it, and a model that
was pruned elsewhere can. What TensorRT-RTX 1.7 refuses, or ignores without a word, is not
offered: build routes, hardware and version compatibility, DLA, other platforms; a timing cache
would need a GPU; there are no plug-ins; and its kernels are chosen on the device, so that
building again finds nothing faster."""

REFUSED: Mapping[str, str] = {
    "timing_cache": "it times no kernels when it builds, so that there is nothing to keep; "
    "they are chosen on the user's GPU",
    "plugins": "it has no plug-ins",
    "build_repeats": "it times no kernels when it builds: a second engine is no faster",
    "hardware_compatible": "name the architectures instead: it builds for each",
    "version_compatible": "its engines load only in the version that built them",
}

PRECISIONS: tuple[Precision, ...] = (
    "fp32",
    "fp16",
    "bf16",
    "int8",
    "fp8",
    "int4",
    "nvfp4",
    "mxfp4",
)

RESTS: tuple[Rest, ...] = ("fp16", "fp32", "bf16")
"""FP16 around INT8 and FP8: in FP32 what is not quantized moves twice the bytes, and an engine
can be slower than one in FP16 alone. Convolutions and products stay in 8 bits with it, their
residual sums, activations and LayerNorms in one kernel behind them (layers for sm_89)."""

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

SCHEMES: Mapping[Precision, Scheme] = {
    "int8": SCHEME,
    "fp8": msgspec.structs.replace(SCHEME, name="tensorrt-rtx-e4m3", activation="fp8"),
}
"""FP8 takes the places of INT8: convolutions, Gemm and MatMul were seen to compute in it, with
one scale per activation and one per channel of a weight."""


def _weights(kind: Literal["int4", "nvfp4", "mxfp4"], block: int) -> WeightScheme:
    return WeightScheme(
        name=f"tensorrt-rtx-{kind}", format=kind, compute=("Gemm", "MatMul"), block=block
    )


WEIGHTS: Mapping[Precision, WeightScheme] = {
    "int4": _weights("int4", 0),
    "nvfp4": _weights("nvfp4", 16),
    "mxfp4": _weights("mxfp4", 32),
}
"""Matrix products only: for a 1x1 convolution the parser says "The blocking dimension must be
the last or second to last dimension". INT4 is unpacked inside of the product's kernel, FP4 by a
kernel before it. The parser reads no E8M0 constants, so MXFP4's scales, powers of two, are
written as FP16 numbers, which have the same values."""

_AMPERE = ("sm_80", "sm_86")
_FP4 = "{arch} has no FP4, which comes with sm_120: ask for int4, int8 or fp16, or build for it"
_LACKS: Mapping[Precision, Mapping[str, str]] = {
    "bf16": {"sm_75": "{arch} has no BF16, which comes with sm_80: ask for fp16"},
    "fp8": dict.fromkeys(
        ("sm_75", *_AMPERE),
        "{arch} has no FP8, which comes with sm_89: ask for int8 or fp16, or build for sm_89",
    ),
    "int4": {
        "sm_75": "{arch} has no INT4 weights, which come with sm_80: ask for int8 or fp16"
    },
    "nvfp4": dict.fromkeys(("sm_75", *_AMPERE, "sm_89"), _FP4),
    "mxfp4": dict.fromkeys(("sm_75", *_AMPERE, "sm_89"), _FP4),
}
"""Each was built for each architecture; those here were refused with "the model contains
HW-specific datatypes"."""

ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""What TensorRT-RTX 1.7 can name as a compute capability."""

_TURING = 75
"""The oldest architecture that TensorRT 10.13 and 11 know, in the digits of its name."""


def targets(archs: tuple[str, ...]) -> tuple[Availability, ...]:
    """Return what is said of each architecture in ``archs``.

    Without any: this machine's GPUs that can be built for, or every architecture if it has
    none.
    """
    here = gpu.archs()
    wanted = archs or tuple(dict.fromkeys(arch for arch in here if arch in ARCHS)) or ARCHS
    return tuple(_availability(arch, here) for arch in wanted)


def rest() -> Rest:
    """Return what computes around quantized layers where nobody says."""
    return RESTS[0]


def cannot_compute(arch: str, precision: Precision) -> str:
    """Return why no engine for ``arch`` computes in ``precision``, or an empty string."""
    return _LACKS.get(precision, {}).get(arch, "").format(arch=arch)


def _availability(arch: str, here: tuple[str, ...]) -> Availability:
    cannot_build = ""
    if arch not in ARCHS:
        data_center = int(arch.removeprefix("sm_")) > _TURING
        other = (
            ". --backend tensorrt builds for it, on a machine with such a GPU"
            if data_center
            else ""
        )
        cannot_build = (
            f"{arch} is not supported by TensorRT-RTX: it builds for {', '.join(ARCHS)}{other}"
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
        (f for f in _CUDA_FLAVORS if distributions.version(f"tensorrt_rtx_{f}_libs")),
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


def cannot_set(settings: Mapping[str, Setting]) -> str:
    """Return why these settings do not fit, or an empty string."""
    return trt_settings.problem(settings)


def gpus(_: Target) -> tuple[str, ...]:
    """Return nothing: a build times no kernels."""
    return ()


def build(request: BuildRequest) -> BuildRecord:
    """Write the engine that is asked for, in a child process.

    Raises:
        BuildError: TensorRT-RTX refuses the graph, a profile or a setting.
        MissingBackendError: TensorRT-RTX is not installed.
    """
    fingerprint(request.target)  # raises with the install line before an import would without
    from trtbuild.backends import _trt  # noqa: PLC0415  heavy: onnx and 230 MB of library

    unknown = [name for name, _ in request.settings if name not in OPTIONS]
    if unknown:
        message = f"tensorrt-rtx honors {list(OPTIONS)}, got {unknown}"
        raise ValueError(message)
    return _trt.build(request, {**OPTIONS, **dict(request.settings)})
