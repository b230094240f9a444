"""What is decided without a device: profiles, buffers, graphs, versions, drivers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtbuild.backends import compatibility
from trtbuild.backends.buffers import Buffers, capacity
from trtbuild.backends.graph_cache import GraphCache, Refusals
from trtbuild.backends.profile_choice import Bounds, choose
from trtbuild.errors import UsageError

SIZES = st.lists(st.integers(0, 40), min_size=2, max_size=2).map(tuple)


@st.composite
def profiles(draw: st.DrawFn) -> dict[str, Bounds]:
    low, high = draw(SIZES), draw(SIZES)
    least = tuple(map(min, low, high))
    most = tuple(map(max, low, high))
    return {"x": Bounds(min=least, opt=most, max=most)}


@given(st.lists(profiles(), min_size=1, max_size=5), SIZES)
def test_the_smallest_profile_that_holds_a_call_is_chosen(
    found: list[dict[str, Bounds]], sizes: tuple[int, ...]
) -> None:
    holding = [
        index
        for index, profile in enumerate(found)
        if all(
            a <= s <= b
            for a, s, b in zip(profile["x"].min, sizes, profile["x"].max, strict=True)
        )
    ]
    if not holding:
        with pytest.raises(UsageError, match="outside of the profile"):
            choose(found, {"x": sizes})
        return
    chosen = choose(found, {"x": sizes})
    assert chosen in holding
    least = min(math.prod(found[index]["x"].max) for index in holding)
    assert math.prod(found[chosen]["x"].max) == least


def test_of_two_equal_profiles_the_one_tuned_closer_is_chosen() -> None:
    bounds = [Bounds(min=(1,), opt=(opt,), max=(8,)) for opt in (8, 2, 2)]
    assert choose([{"x": b} for b in bounds], {"x": (3,)}) == 1


@given(st.integers(0, 1 << 34), st.integers(0, 1 << 26).map(lambda n: n * 256))
def test_a_buffer_holds_what_it_must_and_never_shrinks(needed: int, held: int) -> None:
    size = capacity(needed, held)
    assert size >= max(needed, held, 1)
    assert size % 256 == 0
    assert size == held or size >= held * 1.5 or not held
    assert capacity(needed, size) == size


def test_buffers_free_what_they_replace() -> None:
    live: set[int] = set()
    sizes: list[int] = []

    def allocate(size: int) -> int:
        sizes.append(size)
        live.add(len(sizes))
        return len(sizes)

    buffers: Buffers[int] = Buffers(allocate, live.remove)
    assert buffers.get("a", 100) == buffers.get("a", 250) == 1
    assert buffers.get("b", 0) == 2
    assert buffers.get("a", 300) == 3
    assert live == {2, 3}
    assert buffers.moved == 1
    assert buffers.total_bytes == sizes[1] + sizes[2]
    buffers.close()
    assert live == set()


def test_a_graph_is_captured_when_its_key_comes_again_and_the_oldest_is_dropped() -> None:
    dropped: list[str] = []
    cache: GraphCache[str] = GraphCache(2, 1, Refusals(), dropped.append)
    for key in "abc":
        assert cache.find(key) is None
        assert not cache.wants(key)
        assert cache.wants(key)
        cache.keep(key, key.upper())
        cache.find("a")
    assert dropped == ["B"]
    assert cache.find("a") == "A"
    cache.clear()
    assert sorted(dropped) == ["A", "B", "C"]


def test_keys_that_never_come_back_fill_no_memory() -> None:
    cache: GraphCache[str] = GraphCache(1, 3, Refusals(), lambda _graph: None)
    assert not any(cache.wants(key) for key in range(10_000))
    assert len(cache._uses) <= 16  # noqa: SLF001  what must stay bounded


def test_after_three_failures_no_context_tries_again() -> None:
    refusals = Refusals()
    first: GraphCache[str] = GraphCache(4, 0, refusals, lambda _graph: None)
    other: GraphCache[str] = GraphCache(4, 0, refusals, lambda _graph: None)
    first.refuse("a", "cannot be captured")
    assert not other.wants("a")
    assert other.wants("b")
    first.refuse("b", "later")
    first.refuse("c", "later")
    assert not other.wants("d")
    assert refusals.reason == "cannot be captured"


@pytest.mark.parametrize(
    ("built", "here", "compatible", "loads"),
    [
        ("11.4.0.106", "11.4.0.106", False, True),
        ("11.4.0.106", "11.4.0.107", False, False),
        ("11.4.0.106", "11.5.0.1", False, False),
        ("11.4.0.106", "11.5.0.1", True, True),
        ("11.4.0.106", "11.3.9.9", True, False),
        ("10.13.0.35", "11.4.0.106", True, True),
        ("8.6.1", "10.0.1", True, True),
        ("8.6.1", "11.4.0.106", True, False),
        ("11.4.0.106", "10.13.0.35", True, False),
        ("10.9.0", "10.10.0", True, True),
    ],
)
def test_versions_that_may_load_an_engine(
    built: str, here: str, *, compatible: bool, loads: bool
) -> None:
    reason = compatibility.refusal(built, here, version_compatible=compatible)
    assert (not reason) == loads
    if not loads:
        assert here in reason
        assert "install" in reason


@pytest.mark.parametrize(
    ("major", "driver", "part"),
    [
        (13, (13, 0), ""),
        (12, (13, 0), ""),
        (0, (11, 4), ""),
        (13, (12, 8), "install driver r580"),
        (12, (11, 8), "CUDA 11.8 at most"),
    ],
)
def test_a_driver_runs_its_cuda_and_earlier(
    major: int, driver: tuple[int, int], part: str
) -> None:
    reason = compatibility.driver_refusal("tensorrt 11.4", major, driver)
    assert (part in reason) if part else (reason == "")
