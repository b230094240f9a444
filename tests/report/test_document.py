from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from tests.report import examples
from trtbuild.errors import StoreError
from trtbuild.report.document import from_json, summarize, to_json
from trtbuild.verification.results import GateResult, Interval, Latency

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.report.document import Report

CONTRACT = {
    "": {"schema", "recipe", "source", "stages", "engines", "passed"},
    "source": {"framework", "digest"},
    "stages": {"name", "key", "cached", "seconds"},
    "engines": {
        *("key", "sha256", "path", "bytes", "backend", "backend_version", "arch"),
        *("precision_requested", "precision_achieved", "int8_mac_share", "fused_layers"),
        *("cached", "verification"),
    },
    "verification": {"measured_on", "passed", "gates", "metrics", "latency_ms"},
    "latency_ms": {"p50", "p95", "p99"},
    "gates": {"name", "limit", "value", "passed", "detail", "advice"},
    "calibration": {"method", "scheme", "metric", "sqnr_db", "chosen"},
}


def test_field_names_are_those_that_others_build_on() -> None:
    document = json.loads(to_json(examples.report()))
    engine = document["engines"][0]
    parts = {
        "": document,
        "source": document["source"],
        "stages": document["stages"][0],
        "engines": engine,
        "verification": engine["verification"],
        "latency_ms": engine["verification"]["latency_ms"],
        "gates": engine["verification"]["gates"][0],
        "calibration": document["calibration"][0],
    }
    missing = {name: CONTRACT[name] - set(part) for name, part in parts.items()}
    assert missing == {name: set() for name in CONTRACT}
    assert document["schema"] == 1
    assert engine["precision_achieved"] == {"fp32": 1, "int8": 5}


@pytest.mark.parametrize("report", [examples.report(), examples.report(drop=0.3, cached=True)])
def test_a_report_survives_json(report: Report) -> None:
    assert from_json(to_json(report)) == report


def test_a_twin_has_no_latency_in_json() -> None:
    document = json.loads(to_json(examples.report()))
    by_place = {
        engine["arch"]: (
            engine["verification"]["measured_on"],
            engine["verification"]["latency_ms"] is None,
        )
        for engine in document["engines"]
    }
    assert by_place["sm_89"] == ("twin", True)
    assert by_place["x86_64-avx512_vnni"] == ("device", False)


def test_a_twin_with_a_latency_cannot_be_made() -> None:
    twin = examples.report().engines[1].verification
    with pytest.raises(ValueError, match="a twin has no latency"):
        replace(twin, latency_ms=examples.latency(1.0))


def test_passed_follows_from_the_gates() -> None:
    good, bad = examples.report(), examples.report(drop=0.3)
    assert (good.passed, good.exit_code) == (True, 0)
    assert (bad.passed, bad.exit_code) == (False, 5)
    one_bad = replace(good, engines=(*good.engines, bad.engines[2]))
    assert not one_bad.passed
    assert json.loads(to_json(one_bad))["passed"] is False


def test_a_file_cannot_claim_that_a_failed_gate_passed() -> None:
    forged = json.loads(to_json(examples.report(drop=0.3)))
    forged["passed"] = forged["engines"][0]["verification"]["passed"] = True
    read = from_json(json.dumps(forged).encode())
    assert not read.passed
    assert not read.engines[0].verification.passed


def test_a_skipped_gate_blocks_nothing_and_gates_nothing() -> None:
    found = examples.report().engines[1].verification
    skipped = GateResult(
        name="max_drop", limit=0.1, value=None, passed=True, detail="no metric", skipped=True
    )
    assert found.accuracy_gated
    without = replace(found, gates=(skipped,), metrics={})
    assert without.passed
    assert not without.accuracy_gated


def test_a_full_cache_hit_needs_every_stage_and_engine() -> None:
    cached = examples.report(cached=True)
    assert cached.full_cache_hit
    assert not examples.report().full_cache_hit
    fresh = examples.report().engines[0]
    assert not replace(cached, engines=(*cached.engines, fresh)).full_cache_hit
    assert not replace(cached, engines=(), stages=()).full_cache_hit


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-20],
        lambda text: text.replace(b'"schema": 1', b'"schema": 2'),
        lambda text: text.replace(b'"recipe"', b'"recipes"'),
        lambda text: text.replace(b'"seconds": 2.31', b'"seconds": "2.31"'),
    ],
)
def test_another_document_is_refused(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(StoreError, match="not a report of schema 1"):
        from_json(change(to_json(examples.report())))


def test_a_measurement_is_summarized_without_its_samples() -> None:
    p50, p95, p99 = (Interval(value=v, low=v - 0.5, high=v + 0.5) for v in (1.0, 2.0, 3.0))
    latency = Latency(
        p50=p50,
        p95=p95,
        p99=p99,
        batch_size=8,
        samples_ms=((1.0, 1.1), (2.9, 1.0)),
        cpu_count=2,
        load_average=None,
    )
    found = summarize(latency)
    assert (found.p50, found.p95, found.p99, found.samples) == (1.0, 2.0, 3.0, 4)
    assert found.intervals["p95"] == (1.5, 2.5)


def test_reading_a_report_loads_nothing_heavy() -> None:
    code = (
        "import sys, trtbuild.report.document, trtbuild.report.sections; "
        "print([m for m in ('numpy', 'onnx', 'onnxruntime', 'rich') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
