"""Runs whole builds in many real processes on one store; a script, to fork from one parent.

    processes.py stampede FOLDER PROCESSES TARGET
    processes.py killed FOLDER KILLS TARGET

Prints one JSON document.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import trtbuild
from tests.pipeline import models
from tests.store.processes import append, fork, lines
from trtbuild.errors import StoreError
from trtbuild.store import Store


def stampede(folder: Path, processes: int, target: str) -> dict[str, object]:
    recipe = models.recipe(folder, target)
    log = folder / "log"
    gate, opened = os.pipe()

    def work() -> None:
        os.close(opened)
        os.read(gate, 1)
        report = trtbuild.build(recipe, folder / "store")
        append(log, json.dumps([models.computed(report), report.engines[0].sha256]))

    children = [fork(work) for _ in range(processes)]
    os.close(gate)
    os.close(opened)
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    seen = [json.loads(line) for line in lines(log)]
    return {
        "failed": failed,
        "computed": [stages for stages, _ in seen],
        "digests": sorted({digest for _, digest in seen}),
        "engines": len(list(Store.open(str(folder / "store")).records("engine"))),
    }


def killed(folder: Path, kills: int, target: str) -> dict[str, object]:
    """Kill builds of ever other models at random moments, then ask for all of them again."""
    recipe = models.recipe(folder, target)
    alive = 0
    for seed in range(kills):
        models.classifier(folder / "model.onnx", seed=seed)
        child = fork(lambda: discard(trtbuild.build(recipe, folder / "store")))
        time.sleep(random.uniform(0.0, 1.0))  # noqa: S311  no secret
        alive += os.waitpid(child, os.WNOHANG)[0] == 0
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    store = Store.open(str(folder / "store"))
    left = [path.name for path in (store.top / "tmp").iterdir()]
    bad = [path.name for path in (store.top / "ac").rglob("*") if is_bad(store, path)]
    passed = 0
    for seed in range(0, kills, 4):
        models.classifier(folder / "model.onnx", seed=seed)
        report = trtbuild.build(recipe, store.root)
        passed += report.passed and trtbuild.build(recipe, store.root).full_cache_hit
    return {"alive": alive, "left": left, "bad": bad, "passed": passed, "asked": -(-kills // 4)}


def discard(_: object) -> None:
    """Make a call one that returns nothing."""


def is_bad(store: Store, path: Path) -> bool:
    """Tell whether a record, or a blob that it names, is not what it says."""
    if not path.is_file():
        return False
    record = store.get(path.parent.parent.name, path.name)
    if record is None:
        return True
    try:
        return any(len(store.read(blob.sha256)) != blob.bytes for blob in record.blobs)
    except StoreError:
        return True


def main() -> None:
    what, folder, count, target = sys.argv[1:]
    do = stampede if what == "stampede" else killed
    print(json.dumps(do(Path(folder), int(count), target)))  # noqa: T201  a script's answer


if __name__ == "__main__":
    main()
