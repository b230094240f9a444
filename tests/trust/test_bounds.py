"""The last moment at which a release counts, and the first at which it does not."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.trust.forge import NOW, POLICY, forge
from trtbuild.errors import TrustError, UsageError
from trtbuild.pipeline.signing import next_seq
from trtbuild.trust.candidate import Situation
from trtbuild.trust.checks import decide
from trtbuild.trust.policy import read_policy
from trtbuild.trust.statements import Release, moment, second

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

HOUR = 3600
AT = moment(second(NOW))
NUMBER = int(AT.timestamp())


def at(seconds: int) -> datetime:
    return AT + timedelta(seconds=seconds)


def code(built: Path, *, created: int = 0, expires: int = HOUR, number: int = 0) -> str:
    """Return the code that refuses a release of these seconds after now, if one does."""
    subject = forge(built)
    attempt = subject.changed(
        lambda docs: docs["release"]["predicate"].update(
            created=second(at(created)), expires=second(at(expires)), seq=NUMBER + number
        )
    )
    text = POLICY.replace("promoters = 1", "promoters = 1\nmax_age_days = 1")
    policy = read_policy(text.encode(), "policy")
    situation = Situation(policy=policy, now=AT, seen={})
    try:
        decide(subject.candidate, attempt.envelopes, situation)
    except TrustError as error:
        return error.code
    return ""


@pytest.mark.parametrize("seconds", [0, 600])
def test_a_builders_clock_may_be_ten_minutes_ahead(built: Path, seconds: int) -> None:
    assert code(built, created=seconds, number=seconds) == ""


def test_a_builders_clock_may_not_be_more_ahead(built: Path) -> None:
    assert code(built, created=601, number=601) == "T07"


def test_a_release_ends_at_its_last_second(built: Path) -> None:
    assert code(built, expires=1) == ""
    assert code(built, expires=0) == "T07"


def test_a_release_is_as_old_as_the_policy_says_at_most(built: Path) -> None:
    assert code(built, created=-86400, number=-86400) == ""
    assert code(built, created=-86401, number=-86401) == "T07"


@pytest.mark.parametrize(
    ("created", "number", "refused"),
    [
        (0, HOUR, ""),
        (0, HOUR + 1, "T07"),
        (0, -HOUR, ""),
        (0, -HOUR - 1, "T07"),
        (-HOUR, 0, ""),
        (-HOUR, 1, "T07"),
        (600, HOUR, ""),
        (600, HOUR + 1, "T07"),
        (600, HOUR + 600, "T07"),
    ],
)
def test_a_number_is_the_time_of_a_release_within_an_hour(
    built: Path, created: int, number: int, refused: str
) -> None:
    assert code(built, created=created, number=number) == refused


def release(number: int, created: int = 0) -> Release:
    return Release(
        model="m",
        target="onnxruntime:x",
        key="0" * 64,
        seq=number,
        created=second(at(created)),
        expires=second(at(HOUR)),
        provenance="0" * 64,
        gates="0" * 64,
    )


def test_a_new_number_is_the_time_or_larger_than_all_that_can_be_loaded() -> None:
    assert next_seq([], AT) == NUMBER
    assert next_seq([release(NUMBER - 5, -5)], AT) == NUMBER
    assert next_seq([release(NUMBER), release(NUMBER + 7)], AT) == NUMBER + 8
    assert next_seq([release(2**53 - 1)], AT) == NUMBER, "nobody loads that one"


def test_no_number_is_larger_than_readers_keep() -> None:
    class FarAway:
        @staticmethod
        def timestamp() -> float:
            return 2.0**53

        @staticmethod
        def astimezone(_: object) -> datetime:
            return AT

    with pytest.raises(UsageError, match="clock"):
        next_seq([], FarAway())  # type: ignore[arg-type]  # no date is so far away
