"""Buffers by name that grow and stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

M = TypeVar("M")

_ALIGNMENT = 256
"""Of device memory for TensorRT (IExecutionContext.set_device_memory)."""


def capacity(needed: int, held: int) -> int:
    """Return how many bytes a buffer of ``held`` bytes should get to hold ``needed``.

    What fits stays; what does not grows by half at least, so that a slowly growing shape
    does not move the buffer at every call. Never 0: TensorRT takes no null address.
    """
    if 0 < needed <= held or (held and not needed):
        return held
    size = max(needed, held + held // 2, 1)
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class Buffers(Generic[M]):
    """Memory by name; ``moved`` counts how often any was replaced by a larger one."""

    def __init__(self, allocate: Callable[[int], M], free: Callable[[M], None]) -> None:
        self._allocate = allocate
        self._free = free
        self._held: dict[str, tuple[M, int]] = {}
        self.moved = 0

    @property
    def total_bytes(self) -> int:
        """All that is held."""
        return sum(size for _, size in self._held.values())

    def get(self, name: str, needed: int) -> M:
        """Return memory of at least ``needed`` bytes; what it held before may be lost."""
        memory, held = self._held.get(name, (None, 0))
        size = capacity(needed, held)
        if memory is None or size != held:
            if memory is not None:
                del self._held[name]
                self._free(memory)
                self.moved += 1
            memory = self._allocate(size)
            self._held[name] = (memory, size)
        return memory

    def close(self) -> None:
        """Free everything."""
        while self._held:
            self._free(self._held.popitem()[1][0])
