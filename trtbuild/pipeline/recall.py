"""A full cache hit: the report of an earlier run, if nothing that it depends on has changed.

This is the way of every second call. It imports no numpy, no ONNX, no runtime, no framework:
files are hashed, records are read, and the engines' bytes are verified.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import trtbuild
from trtbuild.backends import gpu
from trtbuild.engine import Value
from trtbuild.pipeline import memo
from trtbuild.pipeline.chosen_key import chosen_key
from trtbuild.pipeline.targets import Plan
from trtbuild.recipe import recipe_json
from trtbuild.report.document import Report
from trtbuild.store import BlobLostError, counters

if TYPE_CHECKING:
    from trtbuild.recipe import Recipe
    from trtbuild.sources.dependencies import Dependencies
    from trtbuild.store import Store


class Question(Value, frozen=True, kw_only=True):
    """What a whole run depends on beside files and packages.

    ``recipe`` is its canonical JSON with its folder, ``plan`` says which engines, with all
    settings and the fingerprints of the libraries, ``program`` is the digest of our own code,
    ``machine`` is what latencies were measured on. With ``signs`` a key signs what the report
    says, and all of it was measured here.
    """

    recipe: str
    plan: Plan
    program: str
    machine: str
    signs: bool


def question_of(recipe: Recipe, plan: Plan) -> Question:
    """Return the question whose answer is the report of a run of ``recipe``."""
    return Question(
        recipe=recipe_json(recipe),
        plan=plan,
        program=_program_digest(),
        machine=machine(),
        signs=bool(chosen_key()),
    )


def recall(store: Store, question: Question) -> Report | None:
    """Return the report of an earlier run with everything marked as cached, None on a miss.

    Every engine that it names is read and verified first.
    """
    report = _recalled(store, question)
    if report is None:
        return None
    tally = counters.Tally(
        tier="local",
        kind="run",
        outcome="hit",
        count=1,
        size_bytes=sum(engine.bytes for engine in report.engines),
        saved_s=sum(stage.seconds for stage in report.stages if not stage.cached),
    )
    counters.count(store, tally)
    return msgspec.structs.replace(
        report,
        stages=tuple(
            msgspec.structs.replace(stage, cached=True, seconds=0.0) for stage in report.stages
        ),
        engines=tuple(
            msgspec.structs.replace(engine, cached=True, path=str(store.path(engine.sha256)))
            for engine in report.engines
        ),
    )


def _recalled(store: Store, question: Question) -> Report | None:
    """Return the report as the run left it, None on a miss."""
    answer = memo.recall(store, question)
    if answer is None:
        return None
    try:
        report = msgspec.json.decode(answer, type=Report)
        for engine in report.engines:
            store.verified_path(engine.sha256)
    except (msgspec.MsgspecError, BlobLostError):
        return None
    return report


def remember(
    store: Store, question: Question, dependencies: Dependencies, report: Report
) -> None:
    """Remember the report of a run for :func:`recall`."""
    engines = tuple(engine.key for engine in report.engines)
    memo.remember(store, question, dependencies, report, engines)


def machine() -> str:
    """Return what distinguishes this machine for timings: its processors and GPUs."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else ""
    models = [
        line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line
    ]
    processors = f"{models[0] if models else 'unknown'} x {os.cpu_count()}"
    return "; ".join((processors, *gpu.names()))


def _program_digest() -> str:
    """Hash our own source files, so that a report never outlives the code that made it."""
    total = hashlib.sha256()
    root = str(Path(trtbuild.__file__).parent)
    # Strings: as Path objects the same walk takes three times as long, on every full hit.
    names = [
        os.path.join(folder, name)  # noqa: PTH118  see above
        for folder, _, files in os.walk(root)
        for name in files
        if name.endswith(".py")
    ]
    for name in sorted(names):
        total.update(name.removeprefix(root).encode() + b"\0")
        with open(name, "rb", buffering=0) as file:  # noqa: PTH123  see above
            total.update(file.read())
    return total.hexdigest()
