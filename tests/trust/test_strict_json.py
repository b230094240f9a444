"""Strict JSON takes time in proportion to its size, whatever is in it."""

from __future__ import annotations

import json
import time

import pytest

from trtbuild.engine import Value
from trtbuild.trust import strict_json

LARGEST = 2**53 - 1


class Shape(Value, frozen=True, kw_only=True):
    number: int
    words: str = ""


def test_a_name_that_occurs_twice_is_found_at_once() -> None:
    names = ",".join(f'"{index}":0' for index in range(80_000))
    started = time.monotonic()
    with pytest.raises(strict_json.StrictError, match="the name 'b' occurs twice"):
        strict_json.parse(f'{{{names},"b":1,"b":2}}'.encode())
    assert time.monotonic() - started < 5


def test_names_of_several_objects_may_be_equal() -> None:
    assert strict_json.parse(b'[{"a":1},{"a":{"a":2}}]') == [{"a": 1}, {"a": {"a": 2}}]


@pytest.mark.parametrize("number", [LARGEST, -LARGEST])
def test_the_largest_integers_that_everybody_keeps_are_read(number: int) -> None:
    assert strict_json.parse(str(number).encode()) == number


@pytest.mark.parametrize("number", [LARGEST + 1, -LARGEST - 1, 10 * LARGEST])
def test_integers_beyond_them_are_refused(number: int) -> None:
    with pytest.raises(strict_json.StrictError, match="beyond"):
        strict_json.parse(str(number).encode())


def test_depth_is_bounded_exactly() -> None:
    whole = b"[" * strict_json.MAX_DEPTH + b"]" * strict_json.MAX_DEPTH
    assert json.loads(whole) == strict_json.parse(whole)
    with pytest.raises(strict_json.StrictError, match="nested"):
        strict_json.parse(b"[" + whole + b"]")


def test_text_that_not_every_reader_takes_is_refused() -> None:
    with pytest.raises(strict_json.StrictError, match="surrogate"):
        strict_json.parse(rb'"\ud800"')


def test_no_default_is_filled_in() -> None:
    assert strict_json.decode(b'{"number":1,"words":""}', Shape) == Shape(number=1)
    with pytest.raises(strict_json.StrictError, match="missing"):
        strict_json.decode(b'{"number":1}', Shape)
