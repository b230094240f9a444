"""Several hosts that want one key: processes with a store each, and one tier between them.

    hosts.py URI FOLDER HOSTS live|kill|pause [PROCESSES [SKEW_S]]

Each host has so many processes. Their clocks differ by ``SKEW_S``: every third host's is
behind, right, or ahead. With ``kill``, the first process that builds is killed while it does;
with ``pause`` it is stopped until all of another host have the engine, and then goes on. Prints
one JSON document.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.store.processes import append, fork, lines
from trtbuild.canonical import digest
from trtbuild.store import Store, make_record
from trtbuild.store.lease import get_or_make
from trtbuild.store.tiered import TieredStore

if TYPE_CHECKING:
    from trtbuild.store import Record

KEY = digest("test", "key")
TTL_S = 0.9


def shift_clock(seconds: float) -> None:
    right = time.time
    time.time = lambda: right() + seconds


def want(uri: str, folder: Path, number: int, how: str, skew_s: float) -> None:
    shift_clock((number % 3 - 1) * skew_s)
    store = Store.open(f"{folder / str(number)},{uri}")
    if not isinstance(store, TieredStore):
        raise TypeError(uri)
    store = replace(store, chain=replace(store.chain, ttl_s=TTL_S))

    def build() -> Record:
        first = not lines(folder / "builds")
        append(folder / "builds", str(os.getpid()))
        time.sleep(600.0 if how == "kill" and first else 2 * TTL_S)
        blob = store.put_bytes("engine", os.urandom(100_000))
        return make_record("engine", KEY, {}, {}, (blob,))

    record, _ = get_or_make(store, "engine", KEY, build)
    store.read(record.blobs[0].sha256)
    append(folder / "engines", record.blobs[0].sha256)


def wait_for_takeover(folder: Path) -> float:
    """Return the seconds until somebody else builds."""
    begun = time.monotonic()
    while len(lines(folder / "builds")) < 2:
        time.sleep(0.01)
    return time.monotonic() - begun


def main() -> None:
    uri, text, hosts, how = sys.argv[1:5]
    processes = int(sys.argv[5]) if len(sys.argv) > 5 else 1
    skew_s = float(sys.argv[6]) if len(sys.argv) > 6 else 0.0
    folder = Path(text)
    children = [
        fork(partial(want, uri, folder, number, how, skew_s))
        for number in range(int(hosts))
        for _ in range(processes)
    ]
    while not lines(folder / "builds"):
        time.sleep(0.01)
    leader = int(lines(folder / "builds")[0])
    taken_over_s = 0.0
    if how == "kill":
        os.kill(leader, signal.SIGKILL)
        taken_over_s = wait_for_takeover(folder)
        children.remove(leader)
        os.waitpid(leader, 0)
    elif how == "pause":
        os.kill(leader, signal.SIGSTOP)
        taken_over_s = wait_for_takeover(folder)
        while len(lines(folder / "engines")) < processes:
            time.sleep(0.01)
        os.kill(leader, signal.SIGCONT)
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    answer = {
        "builds": len(lines(folder / "builds")),
        "engines": lines(folder / "engines"),
        "taken_over_s": taken_over_s,
    }
    print(json.dumps(answer))  # noqa: T201  a script's answer
    sys.exit(failed)


if __name__ == "__main__":
    main()
