"""Write what sessions compute to a file that Polygraphy's tools read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from polygraphy.comparator import IterationResult, RunResults

from trtbuild.verification.accuracy import outputs_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trtbuild.backends import Session
    from trtbuild.batches import Batch


def save_outputs(sessions: Mapping[str, Session], batch: Batch, path: Path) -> None:
    """Run one batch through every session and write all outputs to ``path`` (JSON).

    The file holds Polygraphy run results, one runner per session: ``polygraphy inspect data``
    shows it, ``polygraphy run --load-outputs`` compares other runtimes with it.

    Raises:
        DataError: the batch lacks an input of a session, or a session fails on it.
    """
    results = RunResults()
    for name, session in sessions.items():
        started = time.perf_counter()
        outputs = outputs_of(session, batch, 0)
        seconds = time.perf_counter() - started
        results[name] = [IterationResult(outputs, runtime=seconds, runner_name=name)]
    results.save(str(path))
