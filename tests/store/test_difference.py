from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.store.engines import engine_key
from trtbuild.store import make_record
from trtbuild.store.difference import Difference, differences

if TYPE_CHECKING:
    from trtbuild.engine import EngineKey
    from trtbuild.store import Record

KEY = engine_key("sm_89", 3)


def record(key: object) -> Record:
    return make_record("engine", KEY.digest, key, {})


@pytest.mark.parametrize(
    ("other", "field", "first", "second"),
    [
        (engine_key("sm_120", 3), "target.arch", '"sm_89"', '"sm_120"'),
        (engine_key("sm_89", 5), "settings.optimization_level", "3", "5"),
        (engine_key("sm_89", 3, largest_batch=64), "profiles[0][0].max[0]", "32", "64"),
        (
            msgspec.structs.replace(KEY, settings=(("tf32", False),)),
            "settings.optimization_level",
            "3",
            "absent",
        ),
        (msgspec.structs.replace(KEY, profiles=()), "profiles", "absent", "[]"),
    ],
)
def test_the_field_that_differs_is_named_with_both_values(
    other: EngineKey, field: str, first: str, second: str
) -> None:
    found = differences(record(KEY), record(other))
    assert Difference(field=field, first=first, second=second) in found
    turned = differences(record(other), record(KEY))
    assert Difference(field=field, first=second, second=first) in turned
    assert len(found) == 1 or other.profiles == ()


def test_equal_preimages_do_not_differ() -> None:
    assert differences(record(KEY), record(KEY)) == ()


def test_a_pair_of_one_name_is_not_mistaken_for_settings() -> None:
    first, second = {"a": [["x", 1], ["x", 2]]}, {"a": [["x", 1], ["x", 3]]}
    found = differences(record(first), record(second))
    assert found == (Difference(field="a[1][1]", first="2", second="3"),)
