"""The process in which an engine is loaded for the first time on a machine.

Reads a :class:`trtbuild.runtime.canary.Trial` and the engine from its standard input; leaves
with 0, or with 1 after a line that says what is wrong.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from trtbuild.backends import limits, runtime
from trtbuild.backends.session import Attached
from trtbuild.errors import TrtbuildError
from trtbuild.runtime.canary import Trial
from trtbuild.runtime.io_signature import signature_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from trtbuild.backends import Session

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_OPEN_FILES = 1024
_FILE_BYTES = 4 << 30
"""Plug-in libraries and caches of kernels are written to the private folder."""

_CORES = 64
"""Processor seconds per second of the limit: runtimes use many threads."""


def main() -> int:
    """Try the engine on the standard input; 0 when it is as its manifest says."""
    trial = msgspec.json.decode(sys.stdin.buffer.readline(), type=Trial)
    _limit(trial)
    data = sys.stdin.buffer.read(trial.engine_bytes)
    attached = Attached(
        plugins=tuple(sys.stdin.buffer.read(size) for size in trial.plugin_bytes),
        plugin_digests=trial.plugin_digests,
        dla_core=trial.dla_core,
        weights=sys.stdin.buffer.read(trial.weights_bytes),
    )
    try:
        session = runtime(trial.target.backend).open_session(
            data, trial.target, trial.options, attached
        )
        problem = signature_problem(trial.inputs, trial.outputs, session) or _run_problem(
            trial, session
        )
    except TrtbuildError as error:
        problem = f"it was refused: {error}"
    except MemoryError:
        problem = "it does not fit into the memory that an engine of its size may have"
    if problem:
        sys.stdout.write(problem)
        return 1
    return 0


def _limit(trial: Trial) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: trial.seconds * _CORES,
        resource.RLIMIT_FSIZE: _FILE_BYTES,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
    }
    if trial.memory_bytes:
        wanted[resource.RLIMIT_AS] = trial.memory_bytes
    limits.bound(wanted)


def _run_problem(trial: Trial, session: Session) -> str:
    """Run on zeros and, where that gives no finite outputs, on ones.

    A mean over a mask of zeros is a division by zero in good models, too.
    """
    problem = ""
    for value in (0, 1):
        try:
            outputs = session.run(_arrays(trial, value))
        except TrtbuildError as error:
            problem = str(error)
            continue
        odd = [name for name, array in outputs.items() if not _is_finite(array)]
        if not odd:
            return ""
        problem = f"its output {odd[0]!r} is not finite on zeros, nor on ones"
    return problem


def _arrays(trial: Trial, value: int) -> Mapping[str, npt.NDArray[Any]]:
    shapes = {each.input: each.opt for each in trial.profile}
    return {
        spec.name: np.full(
            shapes.get(spec.name)
            or tuple(size if isinstance(size, int) else 1 for size in spec.shape),
            value,
            dtype=np.dtype(spec.dtype),
        )
        for spec in trial.inputs
    }


def _is_finite(array: npt.NDArray[Any]) -> bool:
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # a runtime's destructors are not what was asked about
