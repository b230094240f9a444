"""DLPack capsules read and written: arrays cross between libraries by their address.

The layout is that of DLPack 0.8 (dlpack.h, ``DLManagedTensor``), which every producer still
gives to a consumer that does not ask for a newer one.
"""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

CPU = 1
CUDA = 2
CUDA_MANAGED = 13
"""Device types, ``DLDeviceType``."""

_CODES: Mapping[str, tuple[int, int]] = {
    "bool": (6, 8),
    "int8": (0, 8),
    "int32": (0, 32),
    "int64": (0, 64),
    "uint8": (1, 8),
    "float16": (2, 16),
    "float32": (2, 32),
    "float64": (2, 64),
    "bfloat16": (4, 16),
}
_NAMES = {code: name for name, code in _CODES.items()}

_NAME = b"dltensor"

_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (
        ("tensor", _Tensor),
        ("manager", ctypes.c_void_p),
        ("deleter", _DELETER),
    )


_python = ctypes.pythonapi
_python.PyCapsule_GetPointer.restype = ctypes.c_void_p
_python.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_python.PyCapsule_New.restype = ctypes.py_object
_python.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)

# A destructor gets its capsule while that is being freed: as an address, never as an object.
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _python)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _python)
)

_exported: dict[int, tuple[_Managed, object, object]] = {}
"""What others hold: the struct, the sizes that it points to, and who owns the memory."""


class Layout(NamedTuple):
    """Where a tensor lies and what it is; ``dtype`` is empty for a type without a name."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    contiguous: bool
    device: tuple[int, int]


def read(capsule: object) -> Layout:
    """Return what a capsule holds, which is valid as long as the capsule lives."""
    address = _python.PyCapsule_GetPointer(capsule, _NAME)
    tensor = ctypes.cast(address, ctypes.POINTER(_Managed)).contents.tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    contiguous = True
    if tensor.strides and math.prod(shape):
        expected = 1
        for axis in reversed(range(len(shape))):
            contiguous &= shape[axis] == 1 or tensor.strides[axis] == expected
            expected *= shape[axis]
    name = _NAMES.get((tensor.code, tensor.bits), "") if tensor.lanes == 1 else ""
    return Layout(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=shape,
        dtype=name,
        contiguous=contiguous,
        device=(tensor.device_type, tensor.device_id),
    )


def write(layout: Layout, owner: object) -> object:
    """Return a capsule of a contiguous tensor; ``owner`` lives until its consumer is done."""
    sizes = (ctypes.c_int64 * max(len(layout.shape), 1))(*layout.shape)
    code, bits = _CODES[layout.dtype]
    managed = _Managed()
    managed.tensor.data = layout.address
    managed.tensor.device_type, managed.tensor.device_id = layout.device
    managed.tensor.ndim = len(layout.shape)
    managed.tensor.code, managed.tensor.bits, managed.tensor.lanes = code, bits, 1
    managed.tensor.shape = ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))
    managed.deleter = _delete
    address = ctypes.addressof(managed)
    _exported[address] = (managed, sizes, owner)
    destructor = ctypes.cast(_destroy, ctypes.c_void_p)
    capsule: object = _python.PyCapsule_New(address, _NAME, destructor)
    return capsule


def _forget(address: int) -> None:
    """Called by the consumer, in any thread."""
    _exported.pop(address, None)


def _free_capsule(capsule: int) -> None:
    """Called when a capsule is freed; a consumer has renamed those that it took."""
    if _is_valid(capsule, _NAME):
        _exported.pop(_get_pointer(capsule, _NAME), None)


_delete = _DELETER(_forget)
_destroy = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_free_capsule)
