from __future__ import annotations

import xml.etree.ElementTree as ET

from msgspec.structs import replace

from tests.report import examples
from trtbuild.report.junit import to_junit

LABEL = "twin (target device absent)"


def parse(document: bytes) -> ET.Element:
    return ET.fromstring(document)  # noqa: S314  the document is our own


def test_a_suite_per_recipe_and_a_case_per_engine_and_gate() -> None:
    report = examples.report()
    other = replace(report, recipe="minilm", engines=report.engines[:1], skipped_targets=())
    root = parse(to_junit([report, other], {}))
    assert [suite.get("name") for suite in root] == ["digits-int8", "minilm"]
    digits, minilm = root
    # Four engines with four gates and themselves, and one target that was skipped.
    assert len(digits.findall("testcase")) == 4 * (4 + 1) + 1
    assert len(minilm.findall("testcase")) == 5
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("26", "0", "0")
    assert root.get("skipped") == str(len(root.findall(".//skipped"))) == "4"


def test_a_failed_gate_is_a_failure_with_its_advice() -> None:
    root = parse(to_junit([examples.report(drop=0.052)], {}))
    failures = {
        case.get("classname"): case.find("failure")
        for case in root.iter("testcase")
        if case.find("failure") is not None
    }
    assert len(failures) == 4
    failure = failures["digits-int8.tensorrt-rtx:sm_89"]
    assert failure is not None
    assert LABEL in failure.get("message", "")
    assert "over it by 0.0470" in failure.get("message", "")
    assert "try: precision fp16" in (failure.text or "")


def test_cases_of_a_twin_are_labelled() -> None:
    root = parse(to_junit([examples.report()], {}))
    for case in root.iter("testcase"):
        if "tensorrt-rtx" in case.get("classname", "") and case.get("name") != "engine":
            assert case.get("name", "").endswith(LABEL)


def test_a_recipe_without_a_report_is_an_error_and_control_characters_are_dropped() -> None:
    message = "engines/x.toml: \x1b[31mthe builder died\x00 & said <nothing>\nmore"
    root = parse(to_junit([], {"x": message}))
    (error,) = root.iter("error")
    assert error.get("message") == "engines/x.toml: [31mthe builder died & said <nothing>"
    assert (error.text or "").endswith("more")
    assert (root.get("tests"), root.get("errors")) == ("1", "1")


def test_no_report_at_all_is_valid_too() -> None:
    assert parse(to_junit([], {})).get("tests") == "0"
