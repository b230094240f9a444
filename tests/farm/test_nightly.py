from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from tests.report import examples
from trtbuild.farm.matrix import Failure
from trtbuild.farm.nightly import Night, Outcome
from trtbuild.farm.summary import of_night
from trtbuild.report.document import Report

WHOLE = replace(examples.report(), skipped_targets=())


def outcome(name: str, found: Report | int) -> Outcome:
    """Return the outcome of a recipe with a report, or with this exit code."""
    if isinstance(found, Report):
        return Outcome(recipe=name, path=f"{name}.toml", seconds=1.0, report=found)
    failure = Failure(message=f"{name} went wrong", exit_code=found)
    return Outcome(recipe=name, path=f"{name}.toml", seconds=1.0, failure=failure)


@pytest.mark.parametrize(
    ("found", "strict", "code"),
    [
        ((WHOLE, WHOLE), True, 0),
        ((WHOLE, examples.report()), False, 0),
        ((WHOLE, examples.report()), True, 5),
        ((WHOLE, 2), False, 2),
        ((4, WHOLE, 2), False, 4),
        ((6, examples.report(drop=0.3), 3), False, 5),
        ((6, examples.report()), True, 5),
        ((2, 6, 3), True, 6),
    ],
)
def test_a_gate_decides_before_the_worst_error(
    found: tuple[Report | int, ...],
    strict: bool,  # noqa: FBT001  a parameter of the test, not of a call
    code: int,
) -> None:
    outcomes = tuple(outcome(f"r{index}", each) for index, each in enumerate(found))
    night = Night(strict=strict, outcomes=outcomes)
    assert (night.exit_code, night.passed) == (code, code == 0)
    # What a file says of itself does not count.
    true = msgspec.json.encode(night)
    lie = true.removesuffix(b"false}") + b"true}" if code else true
    assert msgspec.json.decode(lie, type=Night) == night
    assert of_night(night).ending.startswith("PASSED" if code == 0 else "FAILED")


def test_figures_of_a_twin_have_a_table_of_their_own_without_latency() -> None:
    night = Night(strict=False, outcomes=(outcome("digits", examples.report(drop=0.3)),))
    tables = {section.title: section for section in of_night(night).sections}
    device = next(tables[title] for title in tables if "target device" in title)
    twin = next(tables[title] for title in tables if "twin (target device absent)" in title)
    assert [row[1] for row in device.rows] == ["onnxruntime:x86_64-avx512_vnni"]
    assert {row[1] for row in twin.rows} == {f"tensorrt-rtx:sm_{n}" for n in (86, 89, 120)}
    assert [column.name for column in device.columns][-2:] == ["p50 ms", "speedup"]
    assert [column.name for column in twin.columns][-1] == "drop"
    failed = next(tables[title] for title in tables if title.startswith("Gates that failed"))
    told = [note for note in failed.notes if "max_drop failed" in note]
    assert len(told) == 4
    assert sum("on the twin (target device absent)" in note for note in told) == 3
