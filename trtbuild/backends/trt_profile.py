"""How long each layer of a TensorRT engine takes, by the profiler of an execution context."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from trtbuild.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_WARM_UP_CALLS = 3


def layer_ms(
    trt: ModuleType,
    context: Any,  # noqa: ANN401  untyped bindings
    execute: Callable[[], object],
    calls: int,
) -> dict[str, float]:
    """Return the median time of each layer over ``calls`` calls, in milliseconds.

    ``context`` is an execution context whose shapes and addresses are set, ``execute`` enqueues
    it once and waits for its stream. Names are those of the engine's own layers; several of
    one name are added up. A context with a profiler waits after each layer, so figures are to
    be compared with each other only. It must not be in a CUDA graph, and has no profiler after.

    Raises:
        BuildError: the engine reports no times, as those without names of layers do.
    """
    current: dict[str, float] = {}
    profiler = _profiler(trt, current)
    times: dict[str, list[float]] = {}
    context.enqueue_emits_profile = True  # each call reports before it returns
    context.profiler = profiler
    try:
        for call in range(_WARM_UP_CALLS + calls):
            current.clear()
            execute()
            if call >= _WARM_UP_CALLS:
                for name, spent in current.items():
                    times.setdefault(name, []).append(spent)
    finally:
        context.profiler = None
    if not times:
        raise BuildError(
            "TensorRT's profiler reports no layer of this engine: build it again with this "
            "version, which keeps their names"
        )
    return {name: statistics.median(spent) for name, spent in times.items()}


def _profiler(trt: ModuleType, current: dict[str, float]) -> object:
    """Return a profiler that adds the times of one call to ``current``."""

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]  # untyped bindings
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            current[layer_name] = current.get(layer_name, 0.0) + ms

    return Profiler()
