"""Of several engines of one network, which is fastest: a choice of kernels is luck too."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import numpy as np

from trtbuild.backends import gpu, runtime, trt_session
from trtbuild.backends.session import Attached, SessionOptions
from trtbuild.errors import MissingBackendError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from trtbuild.backends.job import BuildRequest
    from trtbuild.engine import Target

_WARM_UP = 5
_ROUNDS = 50


def fastest(seconds: Sequence[Sequence[float]]) -> int:
    """Return the index of the engine with the least median; of equals the first built."""
    medians = [statistics.median(times) for times in seconds]
    return medians.index(min(medians))


def require(target: Target) -> None:
    """Refuse to build several engines where none could be measured afterwards.

    Raises:
        MissingBackendError: something is not installed; the message says what to install.
    """
    reason = trt_session.lacks(target.backend, trt_session.here(target.backend))
    if reason:
        message = f"{target}: build_repeats measures the engines: {reason}, or leave it out"
        raise MissingBackendError(message)


def measure(engines: Sequence[bytes], request: BuildRequest) -> list[list[float]]:
    """Return times of calls in seconds by engine, copies included, in turns of one call each.

    Inputs are zeros in the shapes that the first profile is optimized for.

    Raises:
        MissingBackendError: engines cannot run here.
    """
    module = runtime(request.target.backend)
    settings = dict(request.settings)
    options = SessionOptions(
        # Our own bytes: a version-compatible engine holds a lean runtime, which is host code.
        allow_host_code=bool(settings.get("version_compatible")),
        device=gpu.pci_bus_ids().index(request.gpu) if request.gpu else -1,
    )
    attached = Attached(
        plugins=tuple(path.read_bytes() for path in request.plugins),
        plugin_digests=str(settings.get("plugins", "")),
        dla_core=int(settings.get("dla_core", -1)),
    )
    sessions = [
        module.open_session(engine, request.target, options, attached) for engine in engines
    ]
    feeds = _zeros(request)
    seconds: list[list[float]] = [[] for _ in engines]
    for turn in range(_WARM_UP + _ROUNDS):
        for session, times in zip(sessions, seconds, strict=True):
            started = time.perf_counter()
            session.run(feeds)
            if turn >= _WARM_UP:
                times.append(time.perf_counter() - started)
    return seconds


def _zeros(request: BuildRequest) -> Mapping[str, npt.NDArray[np.generic]]:
    shapes = {each.input: each.opt for each in (request.profiles or ((),))[0]}
    return {
        spec.name: np.zeros(
            shapes.get(spec.name, tuple(n for n in spec.shape if isinstance(n, int))),
            spec.dtype,
        )
        for spec in request.graph.inputs
    }
