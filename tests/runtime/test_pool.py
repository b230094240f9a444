"""The pool: bounds, order, and what happens when there is no room for one more."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtbuild.backends.pool import NoRoomError, Pool
from trtbuild.errors import UsageError


class Counted:
    """Things of which at most ``room`` can be made."""

    def __init__(self, room: int = 1000) -> None:
        self.room, self.made = room, 0

    def __call__(self) -> int:
        if self.made >= self.room:
            raise NoRoomError("no room")
        self.made += 1
        return self.made


def wait_until_waiting(pool: Pool[int], count: int) -> None:
    while pool.waits < count:
        time.sleep(0.001)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(0, 30),
)
def test_nobody_shares_and_everybody_is_served(
    limit: int, room: int, threads: int, calls: int
) -> None:
    pool = Pool(Counted(room), limit)
    lent: set[int] = set()
    lock = threading.Lock()

    def call(_number: int) -> None:
        item = pool.take()
        try:
            with lock:
                assert item not in lent
                lent.add(item)
            time.sleep(0)
            with lock:
                lent.remove(item)
        finally:
            pool.give(item)

    with ThreadPoolExecutor(threads) as callers:
        list(callers.map(call, range(calls)))
    assert pool.made <= min(limit, room)
    assert pool.in_use == 0


def test_callers_are_served_in_the_order_in_which_they_came() -> None:
    pool = Pool(Counted(), 1)
    item = pool.take()
    served: list[int] = []

    def call(number: int) -> None:
        got = pool.take()
        served.append(number)
        pool.give(got)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(6)]
    for number, thread in enumerate(threads):
        thread.start()
        wait_until_waiting(pool, number + 1)
    pool.give(item)
    for thread in threads:
        thread.join()
    assert served == list(range(6))
    assert pool.waited_s > 0


def test_what_was_used_for_the_same_is_lent_again() -> None:
    pool = Pool(Counted(), 3)
    items = [pool.take() for _ in range(3)]
    for item, last in zip(items, "abc", strict=True):
        pool.give(item, last)
    assert pool.take("a") == items[0]
    assert pool.take("x") == items[2]


def test_without_room_for_one_the_error_comes_through_and_later_callers_try_again() -> None:
    counted = Counted(0)
    pool = Pool(counted, 2)
    with pytest.raises(NoRoomError):
        pool.take()
    counted.room = 1
    pool.give(pool.take())
    assert pool.made == 1


def test_filling_prepares_each_once_and_stops_where_room_does() -> None:
    pool = Pool(Counted(2), 5)
    pool.give(pool.take())
    prepared: list[int] = []
    pool.fill(prepared.append)
    assert sorted(prepared) == [1, 2]
    assert (pool.made, pool.limit, pool.in_use) == (2, 2, 0)


def test_a_failing_preparation_loses_nothing() -> None:
    pool = Pool(Counted(), 2)
    pool.give(pool.take())

    def fail(_item: int) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        pool.fill(fail)
    assert pool.in_use == 0
    assert pool.take() == 1


def test_closing_refuses_those_who_wait_and_disposes_of_all() -> None:
    disposed: list[int] = []
    pool = Pool(Counted(), 1, disposed.append)
    item = pool.take()
    errors: list[UsageError] = []

    def call() -> None:
        try:
            pool.take()
        except UsageError as error:
            errors.append(error)

    waiting = threading.Thread(target=call)
    waiting.start()
    wait_until_waiting(pool, 1)
    ended: list[str] = []
    pool.close(0.01, lambda: ended.append("first"))
    waiting.join()
    assert (disposed, ended, len(errors)) == ([], [], 1)
    pool.close(0.01, lambda: ended.append("second"))
    pool.give(item)
    assert (disposed, ended) == ([1], ["first"])
    assert (pool.made, pool.in_use) == (0, 0)
    pool.close(1, lambda: ended.append("third"))
    assert ended == ["first"]


class InterruptedByTestError(Exception):
    pass


@pytest.mark.parametrize("served", [False, True])
def test_one_who_stops_waiting_leaves_the_queue_and_what_it_was_lent(
    served: bool,  # noqa: FBT001  a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Ctrl-C, or the handler of a signal, stops a thread that waits for a lock."""
    pool = Pool(Counted(), 1)
    item = pool.take()

    def interrupted(_turn: object) -> None:
        if served:
            pool.give(item)
        raise InterruptedByTestError

    with monkeypatch.context() as patched:
        patched.setattr("trtbuild.backends.pool._Turn.wait", interrupted)
        with pytest.raises(InterruptedByTestError):
            pool.take()
    if not served:
        assert pool.in_use == 1
        pool.give(item)
    assert pool.in_use == 0
    assert pool.take() == item


def test_one_who_stops_waiting_when_it_may_try_again_lets_the_next_one_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = Pool(Counted(), 1)
    pool.take()
    woken: list[object] = []

    def woken_and_interrupted(turn: object) -> None:
        behind = pool._queue(None)  # noqa: SLF001  another one waits
        monkeypatch.setattr(behind, "wake", lambda: woken.append(behind))
        pool._turns.remove(turn)  # type: ignore[arg-type]  # noqa: SLF001  as a failed make does
        raise InterruptedByTestError

    monkeypatch.setattr("trtbuild.backends.pool._Turn.wait", woken_and_interrupted)
    with pytest.raises(InterruptedByTestError):
        pool.take()
    assert len(woken) == 1


def test_what_finds_no_room_to_work_in_makes_room_for_the_others() -> None:
    disposed: list[int] = []
    pool = Pool(Counted(), 3, disposed.append)
    items = [pool.take() for _ in range(3)]
    assert pool.discard(items[0])
    assert pool.discard(items[2])
    assert not pool.discard(items[1])
    assert disposed == [1, 3]
    assert (pool.made, pool.limit, pool.in_use) == (1, 1, 1)
    pool.give(items[1])
    assert pool.take() == items[1]


def test_filling_goes_on_with_those_that_find_room() -> None:
    disposed: list[int] = []
    pool = Pool(Counted(), 4, disposed.append)

    def prepare(item: int) -> None:
        if item > 2:
            raise NoRoomError("full")

    pool.fill(prepare)
    assert disposed == [3]
    assert (pool.made, pool.limit, pool.in_use) == (2, 2, 0)
    alone = Pool(Counted(), 4)
    with pytest.raises(NoRoomError):
        alone.fill(lambda _item: prepare(9))
    assert alone.in_use == 0
