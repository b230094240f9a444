"""ONNX Runtime on this machine's processor: the backend that always works.

An engine is the session that ONNX Runtime optimized for this instruction set, written as one
ONNX file. This module is read on the way to a cache hit and imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.backends import Availability, distributions, processor
from trtbuild.backends import fingerprint as fingerprints
from trtbuild.backends.scheme import Scheme, WeightScheme
from trtbuild.engine import Fingerprint, Target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtbuild.backends.job import BuildRequest
    from trtbuild.engine import BuildRecord, Precision, Rest, Setting
    from trtbuild.graph import Graph

NAME = "onnxruntime"
_DISTRIBUTION = "onnxruntime"

OPTIONS: Mapping[str, Setting] = {}
"""None: thread counts and the like belong to a session and change no byte of an engine."""

REFUSED: Mapping[str, str] = {}

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int4")
"""No processor has BF16 kernels for Conv, Gemm and MatMul in ONNX Runtime 1.32. Those for FP16
exist on some; elsewhere it computes in FP32, which the report says and its gate refuses."""

RESTS: tuple[Rest, ...] = ("fp32",)
"""Around INT8 there are no FP16 kernels on the processors that were tried."""

_CARRIERS = (
    "Add",
    "AveragePool",
    "Concat",
    "Flatten",
    "GlobalAveragePool",
    "LeakyRelu",
    "MaxPool",
    "Mul",
    "Reshape",
    "Resize",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""Operators that stayed in 8 bits between two quantized convolutions in ONNX Runtime 1.32:
each was built with Q/DQ on all sides and the optimized graph read back. Those that only move
values (Flatten, MaxPool, Reshape, nearest Resize, Slice, Squeeze, Transpose, Unsqueeze) did so
only with one scale and zero point in and out. Clip, Div, HardSigmoid, Max, Pad, ReduceMean,
Relu, Split, Sub, Tanh and linear Resize went through float; Relu and Clip behind a convolution
fuse into it."""

_FLOAT_STEM = 64
"""``QLinearConv`` gathers the channels of each place of its window one place at a time, which
with few channels costs more than the products: 9.7 ms against 2.4 in float from 1 to 4 channels
(3 x 3, 256 x 256, 4 images, one thread), 2.8 against 1.4 from 4 to 8. With more output channels
than places (32 of 9, 64 of 49) it costs more to quantize the float output than to gather."""

_LOWERING = 1
"""Part of the key of an engine; raised when ``ort_lowering`` starts to give other engines."""


def _scheme(arch: str) -> Scheme:
    """Return the Q/DQ form whose kernels ONNX Runtime has for this processor.

    A convolution becomes ``QLinearConv`` only between Q/DQ pairs on input, weight and output,
    with its bias in INT32 at scale input times weight. ``QGemm`` and ``MatMulIntegerToFloat``
    exist with a float output too, which costs less than to quantize and dequantize it.
    """
    narrow = processor.saturates(arch)
    return Scheme(
        name="onnxruntime-u8s7" if narrow else "onnxruntime-u8s8",
        activation="uint8",
        requantize_outputs=("Conv",),
        bias="int32",
        compute=("Conv", "Gemm", "MatMul"),
        carriers=_CARRIERS,
        weight_bits=7 if narrow else 8,
        tails=("Add",),
        float_stem=_FLOAT_STEM,
    )


SCHEME = _scheme(processor.arch())

SCHEMES: Mapping[Precision, Scheme] = {"int8": SCHEME}

WEIGHTS: Mapping[Precision, WeightScheme] = {
    "int4": WeightScheme(
        name="onnxruntime-int4", format="int4", compute=("Gemm", "MatMul"), block=0
    ),
}
"""Blocks become MatMulNBits, for Gemm too (without its transposition). On processors its kernel
rounds activations to INT8, in blocks as well (accuracy level 4, ONNX Runtime's default)."""


def targets(archs: tuple[str, ...]) -> tuple[Availability, ...]:
    """Return this processor, or what is said of each architecture in ``archs``."""
    here = processor.arch()
    missing = ""
    if not distributions.version(_DISTRIBUTION):
        missing = "the Python package 'onnxruntime' is not installed: pip install trtbuild"
    return tuple(_availability(arch, here, missing) for arch in archs or (here,))


def rest() -> Rest:
    """Return what computes around quantized layers where nobody says."""
    return RESTS[0]


def cannot_compute(arch: str, precision: Precision) -> str:
    """Return an empty string: what :data:`PRECISIONS` names, every processor computes."""
    del arch, precision
    return ""


def _availability(arch: str, here: str, missing: str) -> Availability:
    reason = missing
    if arch != here:
        reason = (
            f"ONNX Runtime optimizes for the processor that it runs on, here {here}: build "
            f"and run engines for {arch} on such a machine"
        )
    target = Target(backend=NAME, arch=arch, os=processor.os_name())
    return Availability(target=target, cannot_build=reason, cannot_run=reason)


def fingerprint(target: Target) -> Fingerprint:
    """Return the installed ONNX Runtime: its version, digest of its files, our lowering."""
    found = fingerprints.installed(target.backend, (_DISTRIBUTION,), "trtbuild")
    return Fingerprint(
        backend=found.backend,
        version=found.version,
        build=f"{found.build}-lowering{_LOWERING}",
    )


def preflight(graph: Graph, target: Target, precision: Precision) -> None:
    """Refuse a graph that is not valid ONNX or holds impossible sizes or constants.

    Raises:
        BuildError: the message names the node or tensor.
    """
    from trtbuild.backends import preflight as checks  # noqa: PLC0415  heavy: reads ONNX

    del target, precision  # ONNX Runtime takes every type that the graph may hold
    checks.check(graph)


def cannot_set(settings: Mapping[str, Setting]) -> str:
    """Return an empty string: there are no settings."""
    del settings
    return ""


def gpus(_: Target) -> tuple[str, ...]:
    """Return nothing: a build times no kernels."""
    return ()


def build(request: BuildRequest) -> BuildRecord:
    """Write the optimized session of the graph.

    Profiles change nothing here; they only have to fit the inputs.

    Raises:
        BuildError: the graph cannot be run, or its engine would be larger than 2 GiB.
    """
    from trtbuild.backends import ort_build  # noqa: PLC0415  heavy: onnx and onnxruntime

    if request.settings:
        message = f"onnxruntime honors no build settings, got {dict(request.settings)}"
        raise ValueError(message)
    return ort_build.build(request.graph, request.profiles, request.target, request.out)
