from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from tests.report import examples
from trtbuild.report.document import Finding
from trtbuild.report.sections import int8_share
from trtbuild.report.terminal import print_report, to_text
from trtbuild.verification.gates import Evidence, judge
from trtbuild.verification.results import OutputParity, Parity

if TYPE_CHECKING:
    from trtbuild.report.document import Report

LABEL = "twin (target device absent)"


def flat(report: Report, width: int = 100) -> str:
    return " ".join(to_text(report, width).split())


def section(report: Report, title: str, width: int = 120) -> str:
    """Return the text from a title to the blank line behind its section."""
    return to_text(report, width).partition(title)[2].partition("\n\n")[0]


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("drop", [0.002, 0.3])
def test_no_line_is_too_long_and_no_figure_is_cut(width: int, drop: float) -> None:
    text = to_text(examples.report(drop=drop), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for figure in (
        "0.9840",
        "31.4",
        "0.999638",
        "94.7 %",
        "403 KiB",
        "1.86x",
        "sm_120",
        "built",
    ):
        assert figure in text


@pytest.mark.parametrize("width", [80, 120])
def test_figures_of_a_twin_stand_under_their_label(width: int) -> None:
    report = examples.report()
    for kind in ("Accuracy", "Outputs against the framework", "Gates"):
        assert "sm_89" in section(report, f"{kind} on the {LABEL}", width)
        assert "sm_" not in section(report, f"{kind} on the target device", width)
    assert f"3 judged by the {LABEL}" in " ".join(to_text(report, width).split())


def test_a_twin_is_not_in_the_latency_table() -> None:
    table = section(examples.report(), "Latency on the target device")
    assert "onnxruntime" in table
    assert "tensorrt-rtx" not in table


def test_a_latency_of_a_busy_machine_says_so() -> None:
    report = examples.report()
    engine = report.engines[0]
    for load_average, expected in ((1.9, False), (2.1, True), (None, False)):
        latency = replace(examples.latency(1.0), load_average=load_average)
        found = replace(engine.verification, latency_ms=latency)
        text = flat(replace(report, engines=(replace(engine, verification=found),)))
        assert ("busy machine" in text) == expected


def test_a_failed_gate_says_which_by_how_much_and_what_to_try() -> None:
    text = flat(examples.report(drop=0.052))
    assert "FAILED: 4 of 4 engines failed a gate" in text
    assert f"sm_120 on the {LABEL}: max_drop failed: drop +0.0520" in text
    assert "over it by 0.0470" in text
    advice = "try: keep in floating point (keep_float) what trtbuild sensitivity puts first"
    assert advice in text
    assert "What failed" not in flat(examples.report())


def test_a_full_cache_hit_is_said() -> None:
    assert "full cache hit" in to_text(examples.report(cached=True), 80).splitlines()[-1]
    assert "full cache hit" in section(examples.report(cached=True), "Stages")
    assert "full cache hit" not in to_text(examples.report(), 80)


def test_without_a_metric_it_says_that_nothing_was_gated() -> None:
    report = examples.report()
    engine = report.engines[0]
    evidence = Evidence(
        metric=None,
        outputs=(examples.errors(),),
        speedup=None,
        no_latency="",
        precision_requested="int8",
        precision_achieved={"int8": 1},
    )
    plain = replace(engine.verification, metrics={}, gates=judge(examples.GATES, evidence))
    text = flat(replace(report, engines=(replace(engine, verification=plain),)))
    assert "nothing was gated on accuracy: the data has no metric" in text
    assert "PASSED: 1 engine, no gate failed" in text
    assert "NOT SIGNED" not in text
    assert "31.4" in text
    left = (Finding(stage="sign", text="engine 1234 was not signed: why"),)
    text = flat(replace(report, findings=left))
    assert ", NOT SIGNED: see 1 finding" in text
    no_limit = replace(engine.verification, gates=())
    text = flat(replace(report, engines=(replace(engine, verification=no_limit),)))
    assert "nothing was gated on accuracy: the recipe sets no max_drop" in text


def test_equal_figures_share_a_row_and_others_do_not() -> None:
    report = examples.report()
    merged = section(report, f"Accuracy on the {LABEL}")
    assert "tensorrt-rtx: sm_86, sm_89, sm_120" in merged
    other = examples.engine("tensorrt-rtx", "sm_75", drop=0.004)
    split = section(
        replace(report, engines=(*report.engines, other)), f"Accuracy on the {LABEL}"
    )
    assert "tensorrt-rtx: sm_75 " in split


def test_zeros_that_agree_are_not_called_equal() -> None:
    silent = OutputParity(
        output="y",
        batch_size=1,
        max_abs=0.0,
        max_relative=None,
        scale=0.0,
        verdict="says nothing",
    )
    report = replace(examples.report(), export_parity=Parity(tolerance=1e-3, outputs=(silent,)))
    table = section(report, "Export parity")
    assert "says nothing" in table
    assert "equal" not in table
    assert "any graph of zeros would agree" in table


def test_text_of_users_is_not_markup() -> None:
    report = replace(examples.report(), recipe="[bold]name[/bold] :smile:")
    assert "[bold]name[/bold] :smile:" in to_text(report, 80)


def test_a_pipe_gets_plain_text_and_a_terminal_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    pipe, terminal = io.StringIO(), Terminal()
    print_report(examples.report(), pipe)
    print_report(examples.report(), terminal)
    assert pipe.getvalue() == to_text(examples.report(), 100)
    assert "\x1b[" not in pipe.getvalue()
    assert "\x1b[" in terminal.getvalue()


def test_a_pipe_that_cannot_take_every_character_gets_the_rest() -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii", write_through=True) as pipe:
        print_report(examples.report(), pipe)
        assert b"PASSED: 4 engines" in raw.getvalue()


@pytest.mark.parametrize(
    ("asked", "share", "shown"),
    [("fp16", 0.0, "-"), ("int8", 0.0, "0.0 %"), ("int8", 0.5, "50.0 %")],
)
def test_an_int8_share_is_told_where_int8_was_asked_for(
    asked: str, share: float, shown: str
) -> None:
    (engine, *_) = examples.report().engines
    changed = replace(engine, precision_requested=asked, int8_mac_share=share)
    assert int8_share(changed) == shown
