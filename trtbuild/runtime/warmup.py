"""What an engine is run on before its first caller: zeros in the shapes it was tuned for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trtbuild.errors import BuildError, DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from trtbuild.backends.session import LoadedSession
    from trtbuild.engine import ShapeRange, TensorSpec

RUNS = 3
"""How often each context runs by default: the third use of a shape captures its CUDA graph
(:mod:`trtbuild.backends.trt_context`)."""


def warm_up(
    session: LoadedSession, profiles: tuple[tuple[ShapeRange, ...], ...], runs: int
) -> None:
    """Run every context ``runs`` times for each profile; a model that refuses zeros may.

    The largest inputs come first: a buffer that grows drops the graphs that hold its address.
    Kernels are loaded, memory is taken and CUDA graphs are captured here and not in a
    caller's first request. A refusal is counted (``warm_up_failures``), not raised.
    """
    found = samples(session.inputs, profiles)
    for feeds in sorted(found, key=_bytes, reverse=True):
        _warm_up(session, feeds, runs)


def _warm_up(session: LoadedSession, feeds: Mapping[str, npt.NDArray[Any]], runs: int) -> None:
    try:
        session.warm_up(feeds, runs)
    except (BuildError, DataError, UsageError):
        session.stats.add("warm_up_failures")


def samples(
    inputs: tuple[TensorSpec, ...], profiles: tuple[tuple[ShapeRange, ...], ...]
) -> list[Mapping[str, npt.NDArray[Any]]]:
    """Return zeros for each profile in its ``opt`` shapes.

    Nothing where the shape of an input is not known, or NumPy lacks its type.
    """
    found: list[Mapping[str, npt.NDArray[Any]]] = []
    for profile in profiles or ((),):
        tuned = {shapes.input: shapes.opt for shapes in profile}
        sizes = {spec.name: tuned.get(spec.name) or _static(spec) for spec in inputs}
        known = {name: shape for name, shape in sizes.items() if shape is not None}
        if len(known) == len(inputs) and all(spec.dtype != "bfloat16" for spec in inputs):
            found.append({s.name: np.zeros(known[s.name], s.dtype) for s in inputs})
    return found


def _bytes(feeds: Mapping[str, npt.NDArray[Any]]) -> int:
    return sum(array.nbytes for array in feeds.values())


def _static(spec: TensorSpec) -> tuple[int, ...] | None:
    sizes = tuple(size for size in spec.shape if isinstance(size, int))
    return sizes if len(sizes) == len(spec.shape) else None
