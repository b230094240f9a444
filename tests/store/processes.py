"""Runs many real processes on one store; a script, so that they fork from a small parent.

    processes.py stampede STORE PROCESSES ROUNDS locks|no-locks
    processes.py killed STORE KILLS

Prints one JSON document.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.canonical import digest
from trtbuild.errors import StoreError
from trtbuild.store import Store, make_record
from trtbuild.store.lease import get_or_make

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.store import Record


def fork(work: Callable[[], None]) -> int:
    """Run ``work`` in a child; it exits with 0, or with 1 and a traceback."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001  the child ends here, whatever it was
        traceback.print_exc()
    os._exit(status)


def append(path: Path, line: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def build(store: Store, key: str, log: Path) -> Record:
    """Pretend a build whose bytes differ every time, as TensorRT's do."""
    append(log, key)
    time.sleep(0.05)
    blob = store.put_bytes("engine", os.urandom(100_000))
    return make_record("engine", key, {}, {}, (blob,))


def do_nothing(_file: object, _operation: int) -> None:
    """Lock as a file system does that has no locks and says nothing."""


def stampede(folder: Path, processes: int, rounds: int) -> dict[str, object]:
    builds, seen = folder.parent / "builds", folder.parent / "seen"

    def ask(gate: int, key: str) -> None:
        os.read(gate, 1)
        store = Store.open(str(folder))
        record, _ = get_or_make(store, "engine", key, lambda: build(store, key, builds))
        data = store.read(record.blob("engine").sha256)
        noted = any("locks" in incident.reason for incident in store.incidents)
        append(seen, f"{key} {digest('seen', data.hex())} {noted}")

    failed = 0
    for turn in range(rounds):
        gate, opened = os.pipe()

        def work(gate: int = gate, opened: int = opened, turn: int = turn) -> None:
            os.close(opened)
            ask(gate, digest("test", turn))

        children = [fork(work) for _ in range(processes)]
        os.close(gate)
        os.close(opened)
        failed += sum(os.waitpid(child, 0)[1] != 0 for child in children)
    store = Store.open(str(folder))
    return {
        "failed": failed,
        "builds": lines(builds),
        "seen": [line.split() for line in lines(seen)],
        "records": sum(1 for _ in store.records("engine")),
    }


def write_forever(folder: Path, acknowledged: Path, begun: int) -> None:
    store = Store.open(str(folder))
    os.write(begun, b"1")
    while True:
        key = digest("test", random.getrandbits(64))
        data = random.randbytes(random.randrange(1, 300_000))  # noqa: S311  no secret

        def make(key: str = key, data: bytes = data) -> Record:
            with store.scratch() as scratch:
                (scratch / "engine").write_bytes(data)
                blob = store.put_file("engine", scratch / "engine")
            return make_record("engine", key, {}, digest("data", data.hex()), (blob,))

        get_or_make(store, "engine", key, make)
        append(acknowledged, key)


def is_whole(store: Store, record: Record) -> bool:
    try:
        data = store.read(record.blob("engine").sha256)
    except StoreError:
        return False
    return digest("data", data.hex()) == record.read(str)


def killed(folder: Path, kills: int) -> dict[str, object]:
    acknowledged = folder.parent / "acknowledged"
    alive = orphans = 0
    for _ in range(kills):
        random.seed()
        ready, begun = os.pipe()

        def work(begun: int = begun) -> None:
            write_forever(folder, acknowledged, begun)

        child = fork(work)
        os.close(begun)
        os.read(ready, 1)  # a busy machine may take long to begin
        os.close(ready)
        time.sleep(random.uniform(0.0, 0.06))  # noqa: S311  no secret
        alive += os.waitpid(child, os.WNOHANG)[0] == 0
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if (folder / "v1" / "tmp").exists():
            orphans += len(list((folder / "v1" / "tmp").iterdir()))
    store = Store.open(str(folder))
    left = [path.name for path in (folder / "v1" / "tmp").iterdir()]
    bad = sum(not is_whole(store, record) for record in store.records("engine"))
    keys = lines(acknowledged)
    lost = sum(store.get("engine", key) is None for key in keys)
    return {
        "alive": alive,
        "orphans": orphans,
        "left": left,
        "bad": bad,
        "acknowledged": len(keys),
        "lost": lost,
        "incidents": [incident.reason for incident in store.incidents],
    }


def main() -> None:
    what, folder, *rest = sys.argv[1:]
    if what == "stampede":
        if rest[2] == "no-locks":
            fcntl.flock = do_nothing
        answer = stampede(Path(folder), int(rest[0]), int(rest[1]))
    else:
        answer = killed(Path(folder), int(rest[0]))
    print(json.dumps(answer))  # noqa: T201  a script's answer


if __name__ == "__main__":
    main()
