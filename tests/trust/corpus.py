"""Attacks on the load of an engine (``attacks/``), each with the code that must refuse it.

Run as a program it tries all of them with ``trtbuild.load`` and prints what happened, with the
sessions that the process opened and the children that it started meanwhile:
``python -m tests.trust.corpus STORE FOLDER``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

import trtbuild
from tests.trust.attacks import cases, engines, envelopes, files, statements
from tests.trust.forge import forge
from trtbuild.errors import TrtbuildError
from trtbuild.runtime.made_here import mark_made
from trtbuild.store.statements import put_statement

if TYPE_CHECKING:
    from tests.trust.forge import Attempt, Forge

KINDS = (files, envelopes, statements, engines)  # each adds its cases
CASES = cases.CASES


def load(attempt: Attempt, f: Forge, folder: Path) -> str:
    """Try to load; return the code that refused it, or ``loaded``."""
    for envelope in attempt.envelopes:
        subject = f.candidate.sha256
        if len(envelope) <= 1 << 20:
            put_statement(f.store, subject, envelope)
        else:  # as somebody who writes to the folder would
            name = hashlib.sha256(envelope).hexdigest()
            (f.store.top / "att" / subject / name).write_bytes(envelope)
    policy, lock, state = folder / "policy.toml", folder / "engines.lock", folder / "state"
    state.mkdir()
    os.environ["TRTBUILD_STATE"] = str(state)
    for record in attempt.made:
        mark_made(record)
    policy.write_text(attempt.policy)
    policy.chmod(attempt.policy_mode)
    if attempt.lock is not None:
        lock.write_text(attempt.lock)
    if attempt.seen is not None:
        (state / "releases.json").write_bytes(attempt.seen)
        (state / "releases.json").chmod(attempt.seen_mode)
    try:
        trtbuild.load(
            attempt.engine,
            f.store.root,
            policy=policy,
            lock=lock if attempt.lock is not None else "",
            model=attempt.model,
        )
    except TrtbuildError as error:
        return str(getattr(error, "code", "")) or f"{type(error).__name__}: {error}"
    return "loaded"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one try: the code, and whether it was remembered as loaded."""

    code: str
    memory_changed: bool


def ordered() -> list[str]:
    """Return the names of the cases by the check that refuses them."""
    return [name for name, _ in sorted(CASES.items(), key=lambda each: each[1][0])]


def attempt(name: str, store: Path, own: Path) -> Outcome:
    """Try one case, or the ``good`` engine, with a copy of ``store`` in a new folder."""
    own.mkdir(parents=True)
    shutil.copytree(store, own / "store")
    f = forge(own / "store")
    shutil.rmtree(f.store.top / "att", ignore_errors=True)
    tried = CASES[name][1](f) if name in CASES else f.attempt()
    code = load(tried, f, own)
    memory = own / "state" / "releases.json"
    after = memory.read_bytes() if memory.exists() else None
    return Outcome(code=code, memory_changed=after != tried.seen)


def main(store: str, folder: str) -> None:
    """Try all cases, the good one last, and print what each did."""
    events: list[str] = []
    really = ort.InferenceSession.__init__

    def opened(session: ort.InferenceSession, *given: object, **named: object) -> None:
        events.append("session")
        really(session, *given, **named)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "subprocess.Popen":
            events.append("child")
        elif event == "import" and arguments[0] in ("tensorrt", "tensorrt_rtx"):
            events.append("session")

    ort.InferenceSession.__init__ = opened
    sys.addaudithook(watch)
    found: dict[str, object] = {}
    for name in [*ordered(), "good"]:
        events.clear()
        outcome = attempt(name, Path(store), Path(folder) / name)
        found[name] = {
            "code": outcome.code,
            "events": list(dict.fromkeys(events)),
            "memory_changed": outcome.memory_changed,
        }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
