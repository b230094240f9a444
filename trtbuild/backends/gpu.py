"""The GPUs of this machine, asked through the driver's own library; needs no Python package."""

from __future__ import annotations

import ctypes

_LIBRARY = "libcuda.so.1"
_COMPUTE_CAPABILITY_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, cuda.h
_COMPUTE_CAPABILITY_MINOR = 76
_NAME_BYTES = 256
_BUS_ID_BYTES = 16

_REASONS = {
    100: "the driver sees no NVIDIA GPU: give this process one (docker: --gpus all)",
    802: "the GPUs are not ready: start NVIDIA's fabric manager",
    803: "the driver's library is not that of the kernel module: restart the machine after a "
    "driver update",
    804: "the CUDA compatibility package does not support this GPU: remove it, or install a "
    "newer driver",
}
"""By the number that ``cuInit`` returns (CUresult, cuda.h)."""


def archs() -> tuple[str, ...]:
    """Return the architectures of this machine's GPUs (``sm_89``) in the driver's order.

    Empty where there is no driver, or no device that it may use.
    """
    cuda, count = _devices()
    return () if cuda is None else tuple(_arch(cuda, index) for index in range(count))


def names() -> tuple[str, ...]:
    """Return the product names of this machine's GPUs, in the same order."""
    cuda, count = _devices()
    return () if cuda is None else tuple(_name(cuda, index) for index in range(count))


def pci_bus_ids() -> tuple[str, ...]:
    """Return where this machine's GPUs are (``0000:01:00.0``), in the same order."""
    cuda, count = _devices()
    return () if cuda is None else tuple(_bus_id(cuda, index) for index in range(count))


def why_none() -> str:
    """Return why no GPU can be used here and what to do, or an empty string."""
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError:
        return (
            f"there is no NVIDIA driver on this machine ({_LIBRARY} is not found): install "
            "it, or move to a machine that has one (docker: --gpus all)"
        )
    code = cuda.cuInit(0)
    if code:
        reason = f"the NVIDIA driver does not start (CUDA error {code}): repair it"
        return _REASONS.get(code, reason)
    return "" if archs() else _REASONS[100]


def driver_cuda() -> tuple[int, int]:
    """Return the newest CUDA version that the driver supports, ``(13, 0)``; zeros without."""
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError:
        return 0, 0
    version = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return 0, 0
    return version.value // 1000, version.value % 1000 // 10


def _devices() -> tuple[ctypes.CDLL | None, int]:
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None, 0
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return None, 0
    return cuda, count.value


def _arch(cuda: ctypes.CDLL, index: int) -> str:
    device = ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    digits = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        digits.append(str(value.value))
    return f"sm_{''.join(digits)}"


def _name(cuda: ctypes.CDLL, index: int) -> str:
    device = ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    text = ctypes.create_string_buffer(_NAME_BYTES)
    cuda.cuDeviceGetName(text, _NAME_BYTES, device)
    return text.value.decode(errors="replace")


def _bus_id(cuda: ctypes.CDLL, index: int) -> str:
    device = ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    text = ctypes.create_string_buffer(_BUS_ID_BYTES)
    cuda.cuDeviceGetPCIBusId(text, _BUS_ID_BYTES, device)
    return text.value.decode()
