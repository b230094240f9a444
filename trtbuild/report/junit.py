"""Reports as JUnit XML, which every CI system shows: a suite per recipe, a case per gate."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from trtbuild.report.sections import measured_on

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trtbuild.report.document import EngineReport, Report
    from trtbuild.verification.results import GateResult

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 forbids even as a reference; the output of a builder has color codes."""


def to_junit(reports: Sequence[Report], errors: Mapping[str, str]) -> bytes:
    """Return one XML document for the runs of a night.

    A suite has a case per engine and gate, one for every engine itself, and one per skipped
    target. ``errors`` are the recipes that made no report, with the message of each: a suite
    with one case in error. Figures of a twin are labelled in the case's name.
    """
    root = ET.Element("testsuites", name="trtbuild")
    for report in reports:
        _add_suite(root, report)
    for recipe, message in errors.items():
        suite = ET.SubElement(root, "testsuite", name=_clean(recipe), time="0.000")
        case = _add_case(suite, recipe, "recipe")
        found = ET.SubElement(case, "error", message=_first_line(message))
        found.text = _clean(message)
    for suite in root:
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped",) * 2):
            suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
        suite.set("tests", str(len(suite.findall("testcase"))))
    for attribute in ("tests", "failures", "errors", "skipped"):
        root.set(attribute, str(sum(int(suite.get(attribute, "0")) for suite in root)))
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _add_suite(root: ET.Element, report: Report) -> None:
    seconds = sum(stage.seconds for stage in report.stages)
    suite = ET.SubElement(root, "testsuite", name=_clean(report.recipe), time=f"{seconds:.3f}")
    for engine in report.engines:
        _add_case(suite, f"{report.recipe}.{engine.target}", "engine")
        for gate in engine.verification.gates:
            _add_gate(suite, report.recipe, engine, gate)
    for skipped in report.skipped_targets:
        case = _add_case(suite, f"{report.recipe}.{skipped.target}", "engine")
        ET.SubElement(case, "skipped", message=_clean(skipped.reason))


def _add_gate(suite: ET.Element, recipe: str, engine: EngineReport, gate: GateResult) -> None:
    label = measured_on(engine.verification)
    case = _add_case(suite, f"{recipe}.{engine.target}", f"{gate.name} on the {label}")
    if gate.skipped:
        ET.SubElement(case, "skipped", message=_clean(gate.detail))
    elif not gate.passed:
        found = ET.SubElement(case, "failure", message=_clean(f"{label}: {gate.detail}"))
        found.text = _clean("\n".join(f"try: {advice}" for advice in gate.advice))
    else:
        ET.SubElement(case, "system-out").text = _clean(gate.detail)


def _add_case(suite: ET.Element, class_name: str, name: str) -> ET.Element:
    return ET.SubElement(
        suite, "testcase", classname=_clean(class_name), name=_clean(name), time="0.000"
    )


def _first_line(message: str) -> str:
    return _clean(message.strip().partition("\n")[0])


def _clean(text: str) -> str:
    return _NOT_XML.sub("", text)
