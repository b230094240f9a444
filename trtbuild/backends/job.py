"""What goes into the child process that builds, and what comes out: plain values as JSON."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from trtbuild import errors
from trtbuild.engine import BuildRecord, Setting, ShapeRange, Target, Value
from trtbuild.graph import Graph

PROGRESS = logging.getLogger("trtbuild.build")
"""A build says here, at level DEBUG, what it is about to do; a crash is explained by it."""


class BuildRequest(Value, frozen=True, kw_only=True):
    """One engine to build: ``graph`` for ``target``, written to ``out``.

    ``settings`` are builder settings that differ from the backend's defaults, by name.
    ``plugins`` are the libraries whose digests they hold, in that order. ``timing_cache`` is
    the file that a build takes times of tactics from and adds its own to, if there is one.
    ``donor`` is an engine to give the graph's weights instead of building one, of which those
    named in ``changed`` differ; where that fails, one is built. ``gpu`` is the PCI bus id of
    the GPU to build on, empty for builds that need none.
    """

    graph: Graph
    profiles: tuple[tuple[ShapeRange, ...], ...]
    settings: tuple[tuple[str, Setting], ...]
    target: Target
    out: Path
    donor: Path | None = None
    changed: tuple[str, ...] = ()
    plugins: tuple[Path, ...] = ()
    timing_cache: Path | None = None
    gpu: str = ""


class Job(Value, frozen=True, kw_only=True):
    """A request and the limits that the child sets on itself before it imports a library.

    ``memory_bytes`` bounds the address space, 0 for no bound: CUDA reserves far more of it
    than it uses. ``processor_s`` bounds the time on all cores together. ``parent_pid`` is 0
    where something else ends the child with its parent.
    """

    request: BuildRequest
    memory_bytes: int
    processor_s: int
    parent_pid: int


class Success(Value, frozen=True, kw_only=True, tag="success"):
    """The engine was written."""

    record: BuildRecord


class Failure(Value, frozen=True, kw_only=True, tag="failure"):
    """The build was refused: the class of the error in ``trtbuild.errors``, and its message."""

    error: str
    message: str


class OutOfMemory(Value, frozen=True, kw_only=True, tag="out-of-memory"):
    """The library could not get memory; ``detail`` is what it said."""

    detail: str


Outcome = Success | Failure | OutOfMemory


def encode(value: Job | Outcome) -> bytes:
    """Return the JSON of a value; paths become text."""
    return msgspec.json.encode(value, enc_hook=_path_to_text)


def decode_job(data: bytes) -> Job:
    """Return the job in ``data``."""
    return msgspec.json.decode(data, type=Job, dec_hook=_path_from_text)


def decode_outcome(data: bytes) -> Outcome:
    """Return the outcome in ``data``."""
    outcome: Outcome = msgspec.json.decode(data, type=Success | Failure | OutOfMemory)
    return outcome


def error_of(failure: Failure) -> errors.TrtbuildError:
    """Return the error that a child reported; one of an unknown class is a build error."""
    known = vars(errors).get(failure.error)
    if isinstance(known, type) and issubclass(known, errors.TrtbuildError):
        return known(failure.message)
    return errors.BuildError(failure.message)


def _path_to_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    message = f"no JSON form of {type(value).__name__}"
    raise NotImplementedError(message)


def _path_from_text(kind: type, text: object) -> object:
    if kind is Path and isinstance(text, str):
        return Path(text)
    message = f"no {kind.__name__} from JSON"
    raise NotImplementedError(message)
