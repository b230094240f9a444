"""The GPUs of this machine, asked through the driver's own library; needs no Python package."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from trtbuild.engine import Value
from trtbuild.errors import MissingBackendError

if TYPE_CHECKING:
    from trtbuild.engine import Target

_LIBRARY = "libcuda.so.1"
_COMPUTE_CAPABILITY_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, cuda.h
_COMPUTE_CAPABILITY_MINOR = 76
_IDENTITY = {"SM": 16, "L2": 38, "shared": 97, "bus": 37}
"""CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, L2_CACHE_SIZE, MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
and GLOBAL_MEMORY_BUS_WIDTH of cuda.h: two boards of one name can differ in them."""
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


class Gpu(Value, frozen=True, kw_only=True):
    """One GPU, or one slice of it under MIG, which the driver's ``name`` then says.

    ``identity`` is what kernels are chosen by beside the architecture: name, number of
    multiprocessors, bytes of L2, bytes of shared memory of a block, bits of the memory bus.
    """

    arch: str
    name: str
    identity: str
    memory_bytes: int


def gpus() -> tuple[Gpu, ...]:
    """Return this machine's GPUs in the driver's order.

    Empty where there is no driver, or no device that it may use.
    """
    cuda, count = _devices()
    return () if cuda is None else tuple(_gpu(cuda, index) for index in range(count))


def archs() -> tuple[str, ...]:
    """Return the architectures of this machine's GPUs (``sm_89``) in the driver's order."""
    return tuple(each.arch for each in gpus())


_AMPERE = 80


def index_for(target: Target, device: int = -1) -> int:
    """Return which of this machine's GPUs an engine runs on, in the driver's order.

    ``device`` where that is named (0 or more); else the first of the model that the engine is
    for, of its architecture, or of Ampere and later, which engines for all of those run on,
    whichever built them. -1 where there is none of these.
    """
    if device >= 0:
        return device
    here = tuple((each.arch, each.identity) for each in gpus())
    exact = [i for i, each in enumerate(here) if each == (target.arch, target.device)]
    alike = [i for i, (arch, _) in enumerate(here) if arch == target.arch]
    on_gpu = number(target.arch) > 0
    able = [i for i, (arch, _) in enumerate(here) if on_gpu and is_ampere(arch)]
    return next(iter((*exact, *alike, *able)), -1)


def is_ampere(arch: str) -> bool:
    """Tell whether an architecture is Ampere's or a later one."""
    return number(arch) >= _AMPERE


def number(arch: str) -> int:
    """Return the number of an architecture, 89 of ``sm_89``; 0 of a processor's."""
    family, _, digits = arch.partition("_")
    return int(digits) if family == "sm" and digits.isdigit() else 0


def names() -> tuple[str, ...]:
    """Return the product names of this machine's GPUs, in the same order."""
    return tuple(each.name for each in gpus())


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


def make_current(index: int) -> None:
    """Let CUDA in this thread use the GPU with this index, in its primary context.

    The CUDA runtime inside TensorRT takes the device of the current context (CUDA driver API,
    "Interoperability with the runtime").

    Raises:
        MissingBackendError: the driver refuses.
    """
    cuda = ctypes.CDLL(_LIBRARY)
    device, context = ctypes.c_int(), ctypes.c_void_p()
    for status in (
        cuda.cuInit(0),
        cuda.cuDeviceGet(ctypes.byref(device), index),
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
        cuda.cuCtxSetCurrent(context),
    ):
        if status:
            message = (
                f"GPU {index} cannot be used: CUDA error {status}; run nvidia-smi: another "
                "process may hold it, or all of its memory"
            )
            raise MissingBackendError(message)


def _devices() -> tuple[ctypes.CDLL | None, int]:
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None, 0
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return None, 0
    return cuda, count.value


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device = ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    text = ctypes.create_string_buffer(_NAME_BYTES)
    cuda.cuDeviceGetName(text, _NAME_BYTES, device)
    name = text.value.decode(errors="replace")
    total = ctypes.c_size_t()
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    major = _attribute(cuda, device, _COMPUTE_CAPABILITY_MAJOR)
    minor = _attribute(cuda, device, _COMPUTE_CAPABILITY_MINOR)
    known = (f"{word} {_attribute(cuda, device, code)}" for word, code in _IDENTITY.items())
    return Gpu(
        arch=f"sm_{major}{minor}",
        name=name,
        identity=", ".join((name, *known)),
        memory_bytes=total.value,
    )


def _attribute(cuda: ctypes.CDLL, device: ctypes.c_int, code: int) -> int:
    value = ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(value), code, device)
    return value.value


def _bus_id(cuda: ctypes.CDLL, index: int) -> str:
    device = ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    text = ctypes.create_string_buffer(_BUS_ID_BYTES)
    cuda.cuDeviceGetPCIBusId(text, _BUS_ID_BYTES, device)
    return text.value.decode()
