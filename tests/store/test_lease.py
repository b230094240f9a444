from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.reliability.shim import shimmed
from trtbuild.canonical import digest
from trtbuild.errors import StoreError
from trtbuild.store import Store, make_record
from trtbuild.store.lease import flight, get_or_make

if TYPE_CHECKING:
    from trtbuild.store import Record

ROOT = Path(__file__).parents[2]
KEY = digest("test", "key")


def run_processes(*arguments: object, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "processes.py", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def made(store: Store, text: str) -> Record:
    blob = store.put_bytes("engine", text.encode())
    return make_record("engine", KEY, {}, text, (blob,))


def test_64_processes_that_ask_for_one_key_make_it_once(tmp_path: Path) -> None:
    answer = run_processes("stampede", tmp_path / "store", 64, 5, "locks")
    assert answer["failed"] == 0
    assert len(answer["builds"]) == len(set(answer["builds"])) == 5
    assert len(answer["seen"]) == 64 * 5
    assert len({(key, data) for key, data, _ in answer["seen"]}) == 5
    assert {noted for _, _, noted in answer["seen"]} == {"False"}


def test_without_locks_everybody_still_gets_the_first_writers_bytes(tmp_path: Path) -> None:
    answer = run_processes("stampede", tmp_path / "store", 24, 3, "no-locks")
    assert answer["failed"] == 0
    assert len(answer["builds"]) > 3, "locks worked, so this showed nothing"
    assert len(answer["seen"]) == 24 * 3
    assert len({(key, data) for key, data, _ in answer["seen"]}) == answer["records"] == 3
    assert "True" in {noted for _, _, noted in answer["seen"]}, "nobody was told"


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_locks_are_an_error_everybody_gets_the_first_writers_bytes(
    error: int, tmp_path: Path
) -> None:
    """C3: a file system without locks, as NFS without its lock daemon."""
    environment = shimmed(tmp_path, SHIM_LOCKS=str(error))
    answer = run_processes("stampede", tmp_path / "store", 12, 2, "locks", **environment)
    assert answer["failed"] == 0
    assert len(answer["builds"]) >= 2
    assert len(answer["seen"]) == 12 * 2
    assert len({(key, data) for key, data, _ in answer["seen"]}) == answer["records"] == 2
    assert "True" in {noted for _, _, noted in answer["seen"]}, "nobody was told"


def test_a_store_answers_correctly_after_kill_9_at_random_points(tmp_path: Path) -> None:
    answer = run_processes("killed", tmp_path / "store", 200)
    assert answer["alive"] >= 130
    assert answer["orphans"] > 0, "no kill hit a write, so this showed nothing"
    assert answer["acknowledged"] > 0
    assert (answer["bad"], answer["lost"], answer["left"]) == (0, 0, [])
    assert answer["incidents"] == []


def test_threads_of_one_process_make_a_key_once(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    builds: list[str] = []
    answers: list[tuple[Record, bool]] = []

    def make() -> Record:
        builds.append("build")
        time.sleep(0.1)
        return made(store, f"build {len(builds)}")

    def ask() -> None:
        answers.append(get_or_make(store, "engine", KEY, make))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == ["build"]
    assert sorted(cached for _, cached in answers) == [False] + [True] * 7
    assert {record.read(str) for record, _ in answers} == {"build 1"}


def test_who_waits_leaves_when_the_record_appears_though_the_lease_is_held(
    tmp_path: Path,
) -> None:
    store = Store.open(str(tmp_path / "store"))
    answers: list[tuple[Record, bool]] = []

    def never() -> Record:
        message = "made although the record appeared"
        raise AssertionError(message)

    with flight(store, "engine", KEY) as appeared:
        assert appeared is None
        waiter = threading.Thread(
            target=lambda: answers.append(get_or_make(store, "engine", KEY, never))
        )
        waiter.start()
        store.put(made(store, "from elsewhere"))
        waiter.join(timeout=30)
        assert not waiter.is_alive()
    assert [(record.read(str), cached) for record, cached in answers] == [
        ("from elsewhere", True)
    ]


def test_a_build_that_fails_frees_the_key_for_the_next(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))

    def fails() -> Record:
        message = "out of memory"
        raise StoreError(message)

    with pytest.raises(StoreError, match="out of memory"):
        get_or_make(store, "engine", KEY, fails)
    record, cached = get_or_make(store, "engine", KEY, lambda: made(store, "second"))
    assert (record.read(str), cached) == ("second", False)


def test_a_record_of_another_key_is_not_taken(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    with pytest.raises(ValueError, match="asked for engine"):
        get_or_make(store, "engine", digest("test", "other"), lambda: made(store, "x"))


def test_a_record_of_an_older_shape_is_made_anew(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    store.put(made(store, "text, not a number"))
    record, cached = get_or_make(
        store, "engine", KEY, lambda: make_record("engine", KEY, {}, 7), int
    )
    assert (record.read(int), cached) == (7, False)
    assert get_or_make(store, "engine", KEY, lambda: made(store, "x"), int)[1] is True
