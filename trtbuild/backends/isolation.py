"""Builds in a child process, because libraries crash, hang and take all memory.

The child gets a private folder, a minimal environment, a raised stack, resource limits and a
wall-clock limit, and a sandbox where one works (:mod:`trtbuild.backends.sandbox`). What it
prints is kept in part; how it dies becomes an error with a remedy.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trtbuild.backends import diagnosis, leavings, sandbox, timing_loan, waiting
from trtbuild.backends.job import (
    Failure,
    Job,
    OutOfMemory,
    Success,
    decode_outcome,
    encode,
    error_of,
)
from trtbuild.errors import BuildError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.backends.job import BuildRequest, Outcome
    from trtbuild.engine import BuildRecord
    from trtbuild.recipe import Limits

_ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
)
"""What the child inherits; a variable that a library reads and that is not here has no
effect."""

_CHILD = [sys.executable, "-m", "trtbuild.backends.child"]

_PROGRESS_BYTES = 4 << 10
_OUTCOME_BYTES = 64 << 20
"""So that a child cannot fill its parent's memory; a bound, no figure that was measured."""

_MIB = 1 << 20


def unwatched(_: str) -> None:
    """Take what a build is at, and do nothing."""


def build_isolated(
    request: BuildRequest, limits: Limits, watch: Callable[[str], None] = unwatched
) -> BuildRecord:
    """Build the engine of ``request`` in its own process and return its record.

    ``watch`` is told about once a second what the build is at.
    ``request.out`` appears when the build succeeded, and only then; its folder must exist.

    Raises:
        BuildError: the model cannot be built, or the builder crashed, hung, or ran out of
            memory.
        StoreError: the file system of ``request.out`` is full.
        MissingBackendError: a sandbox is required, and none works here.
        TrtbuildError: any other error that the backend raised, with its own class.
    """
    parent = request.out.parent.resolve()
    with tempfile.TemporaryDirectory(prefix=".build-", dir=parent) as name:
        folder = Path(name)
        engine = folder / "engine"
        graph = msgspec.structs.replace(request.graph, path=request.graph.path.resolve())
        confined_by = sandbox.chosen().program
        loan = timing_loan.lend(request, folder)
        job = Job(
            request=msgspec.structs.replace(
                request, graph=graph, out=engine, timing_cache=loan.copy if loan else None
            ),
            memory_bytes=(limits.build_memory_mib or 0) * _MIB,
            processor_s=limits.build_seconds * (os.cpu_count() or 1),
            # A sandbox has processes of its own, and dies with its parent by itself.
            parent_pid=0 if confined_by else os.getpid(),
        )
        (folder / "job.json").write_bytes(encode(job))
        prefix = _prefix(confined_by, job.request, folder)
        death = _run([*prefix, *_CHILD], folder, limits.build_seconds, watch)
        try:
            built = _built(_outcome(folder), death, request, limits)
            leavings.publish(engine, request.out)
        except leavings.OddFileError as error:
            raise BuildError(diagnosis.of_odd_file(request, str(error))) from error
        said = timing_loan.take_back(loan) if loan else ""
        warnings = (*built.warnings, *((said,) if said else ()))
        return msgspec.structs.replace(built, warnings=warnings)


def _built(
    outcome: Outcome | None,
    death: diagnosis.Death | None,
    request: BuildRequest,
    limits: Limits,
) -> BuildRecord:
    """Return the record of a success; raise what every other end of a child means."""
    if isinstance(outcome, Success):
        return outcome.record
    if death is not None:
        if death.returncode == diagnosis.NO_ROOM:
            said = diagnosis.last_lines(death.output)
            raise StoreError(diagnosis.of_no_room(request, said))
        raise BuildError(diagnosis.of_death(request, limits, death))
    if isinstance(outcome, Failure):
        raise error_of(outcome)
    if isinstance(outcome, OutOfMemory):
        raise BuildError(diagnosis.of_memory(request, limits, outcome.detail))
    message = f"{request.graph.path}: the builder ended without an outcome"
    raise BuildError(message)


def _outcome(folder: Path) -> Outcome | None:
    """Return what the child left, or ``None`` when it died before, or while, it wrote it.

    Raises:
        OddFileError: it left a link, a FIFO or the like, or more than anybody would read.
    """
    data = leavings.content(folder / "outcome.json", _OUTCOME_BYTES)
    if data is None:
        return None
    if len(data) > _OUTCOME_BYTES:
        raise leavings.OddFileError(
            f"its 'outcome.json' has more than {_OUTCOME_BYTES >> 20} MiB"
        )
    try:
        return decode_outcome(data)
    except ValueError:  # also text that is no UTF-8
        return None


def _prefix(program: str, request: BuildRequest, folder: Path) -> list[str]:
    """Return the words that confine the build to what it needs; none without a program."""
    if not program:
        return []
    donors = (request.donor,) if request.donor else ()
    readable = (request.graph.path.parent, *request.plugins, *donors)
    return sandbox.confined(program, readable, (folder,))


def _run(
    command: list[str], folder: Path, seconds: int, watch: Callable[[str], None]
) -> diagnosis.Death | None:
    """Run the child to its end and return how it died, or ``None`` when it ended well."""
    confined = command != _CHILD
    child = subprocess.Popen(  # noqa: S603  our own interpreter and arguments
        [*command, str(folder / "job.json")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=_environment(folder) | ({"HOME": str(folder)} if confined else {}),
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + seconds
        output, in_time = waiting.until(child, deadline, lambda: watch(_doing(folder)))
    finally:
        # Ctrl-C too ends here: TensorRT swallows it, so only a kill is prompt.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    if in_time and child.returncode == 0:
        return None
    return diagnosis.Death(
        returncode=sandbox.returncode(child.returncode) if confined else child.returncode,
        timed_out=not in_time,
        doing=_doing(folder),
        output=output.decode(errors="replace"),
    )


def _doing(folder: Path) -> str:
    """Return what the child last said that it is at, or an empty string."""
    try:
        said = leavings.content(folder / "progress", _PROGRESS_BYTES) or b""
    except leavings.OddFileError:
        return ""
    return said[:_PROGRESS_BYTES].decode(errors="replace")


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    package = Path(__file__).resolve().parents[2]
    return kept | {
        "PYTHONPATH": str(package),
        "PYTHONUTF8": "1",
        "TMPDIR": str(folder),
        # A build does no linear algebra in NumPy, and each thread takes address space.
        "OPENBLAS_NUM_THREADS": "1",
    }
