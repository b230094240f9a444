"""What one call of a TensorRT engine is: its shapes, its addresses, what is copied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from trtbuild.backends.profile_choice import Sizes
    from trtbuild.backends.trt_engine import Engine
    from trtbuild.engine import TensorSpec

Signature = tuple[object, ...]
"""Shapes and types of a call's inputs, and the values of those that are shapes."""


class Shapes(NamedTuple):
    """What the inputs of a call decide; ``late`` outputs have a shape only when it has run."""

    signature: Signature
    profile: int
    inputs: tuple[tuple[str, Sizes], ...]
    results: tuple[tuple[TensorSpec, Sizes], ...]
    late: tuple[TensorSpec, ...]


class Copy(NamedTuple):
    """A tensor, device memory for it, and the pinned memory it is copied from or to."""

    name: str
    device: Any
    host: npt.NDArray[Any]


class Call(NamedTuple):
    """Shapes and addresses of a call, and its copies; ``key`` is all that a graph fixes."""

    key: tuple[object, ...]
    shapes: Shapes
    addresses: tuple[tuple[str, int], ...]
    copies_in: tuple[Copy, ...]
    copies_out: tuple[Copy, ...]
    on_host: tuple[Copy, ...]


class Graph(NamedTuple):
    """A call that was captured, and the execution context that it runs in."""

    executable: Any
    context: Any


def bytes_of(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the bytes of an array in C order, without a copy where they are so already."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def with_values(
    kinds: Signature, inputs: Mapping[str, npt.NDArray[Any]], engine: Engine
) -> Signature:
    """Return ``kinds`` with the values of the inputs that are shapes."""
    if not engine.host:
        return kinds
    values = [inputs[s.name].tobytes() for s in engine.inputs if s.name in engine.host]
    return (*kinds, tuple(values))
