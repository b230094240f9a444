"""Runs TensorRT-RTX engines: the runtime half of the backend, importable without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.backends import fingerprint, gpu, processor
from trtbuild.errors import MissingBackendError

if TYPE_CHECKING:
    from trtbuild.backends import Session
    from trtbuild.engine import Target


def cannot_run(target: Target) -> str:
    """Return why an engine for ``target`` cannot run here, or an empty string."""
    if target.os != processor.os_name():
        return f"the engine is for {target.os}, this machine is {processor.os_name()}: move"
    here = gpu.archs()
    if not here:
        return (
            "no NVIDIA GPU or driver on this machine: install the driver, or run the engine "
            "on a machine that has one"
        )
    if target.arch not in here:
        return (
            f"the engine is for {target.arch}, this machine's GPU is {', '.join(here)}: build "
            "for it, or move"
        )
    for package in ("tensorrt_rtx", "pycuda"):
        if not fingerprint.has_module(package):
            return (
                f"the Python package {package!r} is not installed: pip install "
                "'trtbuild[rtx]' pycuda"
            )
    return ""


def open_session(engine: bytes, target: Target) -> Session:
    """Return a session of an engine on the first GPU of its architecture.

    Raises:
        MissingBackendError: the engine cannot run here; the message says what is missing.
        TrustError: TensorRT-RTX refuses the bytes.
    """
    reason = cannot_run(target)
    if reason:
        raise MissingBackendError(reason)
    from trtbuild.backends import trt_device  # noqa: PLC0415  its imports need a driver

    return trt_device.open_engine(engine, gpu.archs().index(target.arch), target.backend)
