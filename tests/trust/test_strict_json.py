"""Strict JSON takes time in proportion to its size, whatever is in it."""

from __future__ import annotations

import time

import pytest

from trtbuild.trust import strict_json


def test_a_name_that_occurs_twice_is_found_at_once() -> None:
    names = ",".join(f'"{index}":0' for index in range(80_000))
    started = time.monotonic()
    with pytest.raises(strict_json.StrictError, match="the name 'b' occurs twice"):
        strict_json.parse(f'{{{names},"b":1,"b":2}}'.encode())
    assert time.monotonic() - started < 5


def test_names_of_several_objects_may_be_equal() -> None:
    assert strict_json.parse(b'[{"a":1},{"a":{"a":2}}]') == [{"a": 1}, {"a": {"a": 2}}]
