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
    pool = Pool(Counted(), 1)
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
    disposed: list[int] = []
    assert not pool.close(disposed.append, 0.01)
    waiting.join()
    pool.give(item)
    assert pool.close(disposed.append, 1)
    assert disposed == [1]
    assert len(errors) == 1
