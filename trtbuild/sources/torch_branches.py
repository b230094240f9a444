"""Find the sizes at which a model computes something else than the graph traced from it.

Tracing follows one side of ``if x.shape[0] == 2`` and keeps a guard, ``x.size()[0] != 2``,
which ONNX cannot hold. Some guards only tell that torch assumed sizes above 1, and the graph is
right without them; so the sizes that break a guard are run, in PyTorch and in ONNX Runtime.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from trtbuild.backends.ort_session import open_graph
from trtbuild.errors import DataError, ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import CodeType

    from torch.export import ExportedProgram

    from trtbuild.backends import Session
    from trtbuild.batches import Array
    from trtbuild.engine import ShapeRange, TensorSpec
    from trtbuild.graph import Graph

_WITHOUT_PROFILE = range(1, 17)
"""The sizes tried of an axis that no profile bounds."""

_MOST_SIZES = 512
"""Sizes of one axis whose guards are evaluated, from the smallest; the largest is added."""

_MOST_RUNS = 3

_TOLERANCE = 1e-2
"""Relative L2 difference; another branch is far above, rounding in float32 or 16 below."""

_GUARDED_INPUT = re.compile(r"L\['(\w+)'\]")


def check_branches(
    program: ExportedProgram,
    graph: Graph,
    reference: Session,
    example: Mapping[str, Array],
    profiles: tuple[ShapeRange, ...],
) -> None:
    """Run the sizes within ``profiles`` for which the traced branch may be the wrong one.

    Sizes that the framework itself refuses are left out.

    Raises:
        ExportError: the graph computes something else than the model at such a size.
    """
    guards = _guards(program)
    if not guards:
        return
    session = open_graph(graph.path, fused=False)
    for name, places in _axes(graph.inputs).items():
        broken = {
            size: guard
            for size in _sizes(places, profiles)
            if (guard := _broken_guard(guards, example, places, size))
        }
        for size in _spread(sorted(broken)):
            inputs = _resized(example, places, size)
            try:
                expected = reference.run(inputs)
            except DataError:
                continue
            difference = _difference(expected, session, inputs)
            if difference:
                raise ExportError(
                    f"the exported graph is wrong where {name!r} (axis {places[0][1]} of input "
                    f"{places[0][0]!r}) is {size}: {difference}. The model's code branches on "
                    f"the size, and only the branch for which {broken[size]} was traced. "
                    "Remove the branch, or leave that size out of the profile"
                )


def _guards(program: ExportedProgram) -> list[tuple[str, CodeType]]:
    """Return torch's guards as text and code; torch keeps them in a private list."""
    texts: list[str] = getattr(program, "_guards_code", [])
    return [
        (_GUARDED_INPUT.sub(r"\1", text), compile(text, "<guard>", "eval")) for text in texts
    ]


class _Sized:
    """Stands for a tensor in a guard, which asks for its size only."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def size(self) -> tuple[int, ...]:
        """Return the shape, as a tensor does."""
        return self._shape


def _broken_guard(
    guards: list[tuple[str, CodeType]],
    example: Mapping[str, Array],
    places: list[tuple[str, int]],
    size: int,
) -> str:
    """Return the first guard that does not hold when the axes ``places`` have ``size``."""
    sized = {}
    for name, array in example.items():
        shape = [size if (name, k) in places else n for k, n in enumerate(array.shape)]
        sized[name] = _Sized(tuple(shape))
    for text, code in guards:
        try:
            holds = eval(code, {"L": sized})  # noqa: S307  torch's text on code that has run
        except ZeroDivisionError:
            holds = False
        except (NameError, AttributeError, TypeError, KeyError):
            continue  # a guard on something else than sizes of inputs
        if not holds:
            return text
    return ""


def _axes(inputs: tuple[TensorSpec, ...]) -> dict[str, list[tuple[str, int]]]:
    """Return input and axis of every size that varies, by its name; expressions excepted."""
    places: dict[str, list[tuple[str, int]]] = {}
    for spec in inputs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) and size.isidentifier():
                places.setdefault(size, []).append((spec.name, axis))
    return places


def _sizes(places: list[tuple[str, int]], profiles: tuple[ShapeRange, ...]) -> list[int]:
    bounds = {profile.input: profile for profile in profiles}
    known = [
        (bounds[name].min[axis], bounds[name].max[axis])
        for name, axis in places
        if name in bounds
    ]
    if not known:
        return list(_WITHOUT_PROFILE)
    low, high = max(lo for lo, _ in known), min(hi for _, hi in known)
    return [*range(low, min(high, low + _MOST_SIZES)), high]


def _spread(sizes: list[int]) -> Iterator[int]:
    """Yield the smallest, the largest and the middle of ``sizes``."""
    picks = [0, len(sizes) - 1, len(sizes) // 2][:_MOST_RUNS] if sizes else []
    yield from dict.fromkeys(sizes[pick] for pick in picks)


def _resized(
    example: Mapping[str, Array], places: list[tuple[str, int]], size: int
) -> dict[str, Array]:
    """Return the example with the axes ``places`` cut or repeated to ``size``."""
    resized = dict(example)
    for name, axis in places:
        array = resized[name]
        resized[name] = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
    return resized


def _difference(
    expected: Mapping[str, Array], session: Session, inputs: Mapping[str, Array]
) -> str:
    """Return in words how the graph's outputs differ from those expected, or ``""``."""
    try:
        got = session.run(inputs)
    except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no base class
        return f"ONNX Runtime cannot run it ({str(error).splitlines()[0]})"
    for name, want in expected.items():
        have = got[name]
        if have.shape != want.shape:
            shapes = f"{list(have.shape)} instead of {list(want.shape)}"
            return f"output {name!r} has the shape {shapes}"
        wide = want.astype(np.float64)
        gap = float(np.linalg.norm(have.astype(np.float64) - wide))
        scale = float(np.linalg.norm(wide))
        if gap > _TOLERANCE * max(scale, 1e-6):
            return f"output {name!r} differs by {gap / max(scale, 1e-6):.2g} of its norm"
    return ""
