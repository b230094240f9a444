"""Says how far a build is: the phases that TensorRT announces, from version 10 on.

8.6 announces none; there the log names each layer that is timed
(:class:`trtbuild.backends.trt_log.Messages`).
"""

from __future__ import annotations

import os
from typing import Any

from trtbuild.backends.job import PROGRESS


class Phases:
    """The phases that are open, outermost first, each with its steps done and in all."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, int]] = {}

    def start(self, name: str, steps: int) -> None:
        """Open a phase of so many steps."""
        self._open[name] = (0, steps)

    def step(self, name: str, done: int) -> None:
        """Note that the step with index ``done`` of a phase is complete."""
        if name in self._open:
            self._open[name] = (done + 1, self._open[name][1])

    def finish(self, name: str) -> None:
        """Close a phase."""
        self._open.pop(name, None)

    def __str__(self) -> str:
        """Return the open phases in one line: ``Building engine 3/6, Timing tactics 12/40``."""
        return ", ".join(f"{name} {done}/{steps}" for name, (done, steps) in self._open.items())


def monitor(trt: Any) -> object | None:  # noqa: ANN401  untyped bindings
    """Return a progress monitor that tells :data:`PROGRESS`, None where TensorRT has none.

    It asks TensorRT to stop when the process that waits for this one is gone. An interrupt ends
    the whole child (:mod:`trtbuild.backends.isolation`): a step can last as long as a build.
    """
    if not hasattr(trt, "IProgressMonitor"):
        return None
    parent = os.getppid()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # untyped bindings
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases = Phases()

        def phase_start(
            self, phase_name: str, parent_phase: str | None, num_steps: int
        ) -> None:
            del parent_phase
            self._phases.start(phase_name, num_steps)
            PROGRESS.debug("building the engine: %s", self._phases)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._phases.step(phase_name, step)
            PROGRESS.debug("building the engine: %s", self._phases)
            return os.getppid() == parent

        def phase_finish(self, phase_name: str) -> None:
            self._phases.finish(phase_name)

    return Monitor()
