"""Arrays of a GPU, taken from other libraries and given to them without a copy."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from trtbuild.backends import dlpack
from trtbuild.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

LEGACY_STREAM = 1
"""The default stream, in the words of CUDA Array Interface and DLPack, where 0 is ambiguous."""

_NO_SYNC = -1  # DLPack: the producer must not synchronize
_GPU = (dlpack.CUDA, dlpack.CUDA_MANAGED)
_ITEM_BYTES = {"bfloat16": 2}


def count_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return the size of all elements."""
    return math.prod(shape) * (_ITEM_BYTES.get(dtype) or np.dtype(dtype).itemsize)


class Taken(NamedTuple):
    """A contiguous array of a GPU; ``keep`` must live as long as ``address`` is used.

    ``placed``: its library says on which GPU, as the CUDA Array Interface does not.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    keep: object
    placed: bool = True
    read_only: bool = False


def take(
    name: str, given: object, device: int, stream: int, wait: Callable[[int], None]
) -> Taken:
    """Return where a GPU array lies, safe to use in ``stream`` from now on.

    By DLPack, whose producer orders the stream itself, or by CUDA Array Interface, where
    ``wait`` is called with the producer's stream. ``stream`` -1: it is in order already.

    Raises:
        UsageError: it is not an array of the GPU ``device``, or not contiguous.
    """
    if type(given) is DeviceArray and given.on(device):
        if given.stream is not None and stream not in {_NO_SYNC, given.stream}:
            wait(given.stream or LEGACY_STREAM)
        return Taken(given.address, given.shape, given.dtype, given)
    producer: Any = given
    if hasattr(given, "__dlpack__"):
        try:
            kind, index = (int(number) for number in producer.__dlpack_device__())
            if kind not in _GPU or index != device:
                raise UsageError(elsewhere(name, given, device))
            capsule = producer.__dlpack__(stream=stream)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            message = (
                f"input or output {name!r}: {type(given).__name__} gives no array: {error}"
            )
            raise UsageError(message) from error
        layout = dlpack.read(capsule)
        if not layout.contiguous:
            raise UsageError(_strided(name))
        return Taken(layout.address, layout.shape, layout.dtype, (given, capsule))
    found = getattr(given, "__cuda_array_interface__", None)  # a property that costs time
    if found is not None:
        return _by_interface(name, (given, found), stream, wait)
    raise UsageError(elsewhere(name, given, device))


def _by_interface(
    name: str,
    offered: tuple[object, dict[str, Any]],
    stream: int,
    wait: Callable[[int], None],
) -> Taken:
    """CUDA Array Interface, versions 0 to 3 (Numba's documentation).

    Before version 3 nothing is said of streams: the default stream is waited for, which waits
    for every stream that is not declared independent of it.
    """
    given, found = offered
    shape = tuple(found["shape"])
    dtype, item = _element(found["typestr"])
    if found.get("mask") is not None:
        message = f"input or output {name!r}: masked arrays are not taken: fill the mask"
        raise UsageError(message)
    strides = found.get("strides")
    if strides is not None and tuple(strides) != _c_strides(shape, item):
        raise UsageError(_strided(name))
    if stream != _NO_SYNC:
        producing = found.get("stream", LEGACY_STREAM)
        if producing is not None:
            wait(int(producing))
    address, read_only = found["data"]
    return Taken(
        int(address or 0), shape, dtype, given, placed=False, read_only=bool(read_only)
    )


@functools.lru_cache(maxsize=64)
def _element(typestr: str) -> tuple[str, int]:
    """Return the name and the size of a type; NumPy takes microseconds for them."""
    dtype = np.dtype(typestr)
    return dtype.name, dtype.itemsize


def _c_strides(shape: tuple[int, ...], item: int) -> tuple[int, ...]:
    return tuple(item * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _strided(name: str) -> str:
    return f"input or output {name!r} is not contiguous: make it so (.contiguous())"


def elsewhere(name: str, given: object, device: int) -> str:
    """Return what is wrong with an array that is not on the GPU ``device``."""
    return (
        f"input or output {name!r}: expected an array of GPU {device} with __dlpack__ or "
        f"__cuda_array_interface__, got {type(given).__name__}: move it there"
    )


class Access(Protocol):
    """What an array needs of its device."""

    @property
    def index(self) -> int:
        """Its number."""

    def order(self, first: int, then: int) -> None:
        """Let stream ``then`` wait for stream ``first``."""

    def copy_to_host(self, host: npt.NDArray[Any], address: int, stream: int | None) -> None:
        """Copy from ``address``, after the work of ``stream``."""

    def release(self, memory: object) -> None:
        """Free device memory, from any thread."""


class DeviceArray:
    """A contiguous array of a GPU, which frees its memory when nobody holds it.

    ``stream`` is where it is made; ``None``: it is ready. PyTorch takes it by
    ``torch.from_dlpack``, CuPy by ``cupy.from_dlpack`` or ``cupy.asarray``.
    """

    def __init__(
        self,
        layout: tuple[int, tuple[int, ...], str],
        access: Access,
        stream: int | None,
        memory: object = None,
    ) -> None:
        self.address, self.shape, self.dtype = layout
        self.stream = stream
        self._access = access
        self._memory = memory

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}{list(self.shape)} on GPU {self._access.index})"

    def __del__(self) -> None:
        memory, self._memory = getattr(self, "_memory", None), None
        if memory is not None:
            self._access.release(memory)

    def on(self, device: int) -> bool:
        """Tell whether it lies on the GPU ``device``."""
        return self._access.index == device

    @property
    def nbytes(self) -> int:
        """The size of all elements."""
        return count_bytes(self.shape, self.dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """CUDA Array Interface, version 3."""
        if self.dtype == "bfloat16":
            message = "bfloat16 has no name in the CUDA Array Interface: use DLPack"
            raise AttributeError(message)
        return {
            "shape": self.shape,
            "typestr": np.dtype(self.dtype).str,
            "data": (self.address if self.nbytes else 0, False),
            "version": 3,
            "strides": None,
            "stream": None if self.stream is None else self.stream or LEGACY_STREAM,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the device as DLPack names it."""
        return dlpack.CUDA, self._access.index

    def __dlpack__(self, *, stream: int | None = None, **_newer: object) -> object:
        """Return a capsule; ``stream`` of the consumer waits for the array."""
        if self.stream is not None and stream != _NO_SYNC:
            then = LEGACY_STREAM if stream is None else stream
            if then != (self.stream or LEGACY_STREAM):
                self._access.order(self.stream, then)
        layout = dlpack.Layout(
            address=self.address,
            shape=self.shape,
            dtype=self.dtype,
            contiguous=True,
            device=self.__dlpack_device__(),
        )
        return dlpack.write(layout, self)

    def numpy(self) -> npt.NDArray[Any]:
        """Return a copy on the host; bfloat16 becomes float32, which holds all its values."""
        raw = np.empty(self.nbytes, np.uint8)
        if self.nbytes:
            self._access.copy_to_host(raw, self.address, self.stream)
        return on_host(raw, self.dtype, self.shape)


def on_host(raw: npt.NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return bytes as an array, bfloat16 (the upper half of a float32) widened exactly."""
    if dtype == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return raw.view(dtype).reshape(shape)
