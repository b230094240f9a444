from __future__ import annotations

import re

from msgspec.structs import replace

from tests.report import examples
from trtbuild.report.document import Finding, from_json, to_json
from trtbuild.report.markdown import to_markdown

LABEL = "twin (target device absent)"


def test_equal_reports_give_equal_bytes() -> None:
    report = examples.report()
    assert to_markdown(report) == to_markdown(from_json(to_json(report)))


def test_every_row_has_as_many_cells_as_its_heading() -> None:
    text = to_markdown(examples.report(drop=0.3))
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert len(tables) > 8
    for table in tables:
        rows = [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()]
        assert len(set(rows)) == 1
        assert set(table.splitlines()[1]) <= set("|:- ")


def test_figures_of_a_twin_stand_under_their_label() -> None:
    parts = to_markdown(examples.report()).split("\n## ")
    twins = [part for part in parts if "sm_89" in part and not part.startswith("Engines")]
    assert len(twins) == 3
    assert all(part.splitlines()[0].endswith(LABEL) for part in twins)


def test_a_failed_gate_says_which_by_how_much_and_what_to_try() -> None:
    text = to_markdown(examples.report(drop=0.052))
    assert "**FAILED: 4 of 4 engines" in text
    assert "over it by 0.0470" in text
    assert "\n  - try: precision fp16\n" in text


def test_a_full_cache_hit_is_said() -> None:
    assert "full cache hit" in to_markdown(examples.report(cached=True))


def test_text_of_users_cannot_break_the_page() -> None:
    finding = Finding(
        stage="export", text="a|b <script> [x](y)\n# heading `code` snake_case _i_"
    )
    text = to_markdown(replace(examples.report(), findings=(finding,)))
    assert r"| export | a\|b \<script\> \[x\](y) \# heading \`code\` snake_case \_i\_ |" in text
