"""How a builder died, in words: the culprit, what was expected, what to do."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from trtbuild.engine import Value

if TYPE_CHECKING:
    from trtbuild.backends.job import BuildRequest
    from trtbuild.recipe import Limits

NOISE = "catchCudaError"
"""TensorRT-RTX adds a line of this function after each refused call where there is no GPU."""

MEMORY_WORDS = (
    "bad_alloc",
    "OutOfMemory",
    "MemoryError",
    "could not be allocated",
    "Failed to allocate memory",
    "Memory allocation",
    "failed to map segment",
    "Cannot allocate memory",
    "Arena alloc failed",
)
"""What libraries say when they could not get memory."""

NO_ROOM = 74
"""Exit code of a child whose outcome cannot be written; EX_IOERR of sysexits.h."""

_LAST_LINES = 5

_REMEDIES = {
    "SIGXCPU": "it used all processors for all of its time: raise [limits] build_seconds",
    "SIGXFSZ": "the engine is larger than 64 GiB, or than this user may write (ulimit -f)",
    "SIGFPE": "an integer division by a constant 0 does this: look for Div and Mod",
    "SIGSEGV": (
        "a very long chain of nodes or a malformed node does this: run onnx.checker on the "
        "model, and cut it down around the node"
    ),
    "SIGKILL": "the system killed it, most often for its memory: build on a larger machine",
}


class Death(Value, frozen=True, kw_only=True):
    """The end of a child that left no outcome.

    ``returncode`` is as in ``subprocess``: negative for a signal. ``doing`` is the last thing
    that the build said it was about to do; ``output`` is the last of what it printed.
    """

    returncode: int
    timed_out: bool
    doing: str
    output: str


def of_death(request: BuildRequest, limits: Limits, death: Death) -> str:
    """Return the message for a child that died or was killed for its time."""
    subject = f"{request.graph.path}: the builder of {request.target}"
    moment = f" while {death.doing}" if death.doing else ""
    if death.timed_out:
        return (
            f"{subject} did not end within {limits.build_seconds} s and was killed{moment}: "
            "raise [limits] build_seconds, or make the model smaller"
        )
    said = last_lines(death.output)
    if any(word in death.output for word in MEMORY_WORDS):
        return of_memory(request, limits, said)
    tail = f". Its last words: {said}" if said else ""
    if death.returncode >= 0:
        return (
            f"{subject} ended with code {death.returncode}{moment}{tail}. Run 'trtbuild "
            "doctor', and report this with the model if everything is installed"
        )
    name = _signal_name(-death.returncode)
    remedy = _REMEDIES.get(name, "cut the model down around the node until it builds")
    return f"{subject} crashed with {name}{moment}: {remedy}{tail}"


def of_no_room(request: BuildRequest, detail: str) -> str:
    """Return the message for a build whose file system is full."""
    return (
        f"{request.graph.path}: the builder of {request.target}: no room for its result: "
        f"{detail}. Free space on the store's file system, or give another folder with --store"
    )


def of_odd_file(request: BuildRequest, what: str) -> str:
    """Return the message for a builder that left something else than files of its own."""
    return (
        f"{request.graph.path}: the builder of {request.target}: what it left is not to be "
        f"used: {what}. The model may have taken the builder over: do not use it, and report "
        "this with the model"
    )


def of_memory(request: BuildRequest, limits: Limits, detail: str) -> str:
    """Return the message for a build that could not get memory."""
    bound = "this machine's memory is not enough: build on a larger one"
    if limits.build_memory_mib is not None:
        bound = (
            f"the limit is {limits.build_memory_mib} MiB of address space: raise [limits] "
            "build_memory_mib"
        )
    subject = f"{request.graph.path}: the builder of {request.target}"
    return f"{subject} ran out of memory ({detail}); {bound}"


def last_lines(output: str) -> str:
    """Return the last lines of a child's output in one, without the noise."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and NOISE not in line]
    return " | ".join(lines[-_LAST_LINES:])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
