"""A device that lowers its clocks while an engine is timed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trtbuild
from tests.pipeline import models
from tests.verification.meters import ScriptedMeter, reading
from trtbuild.pipeline import verification
from trtbuild.recipe import Gates
from trtbuild.store import Store
from trtbuild.store.counters import flush, totals
from trtbuild.verification import conditions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

    from trtbuild.engine import Target


def test_a_throttled_run_fails_the_gate_shows_no_time_and_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = ["power cap"]

    @contextlib.contextmanager
    def device(_: tuple[Target, ...]) -> Iterator[ScriptedMeter]:
        yield ScriptedMeter([reading(*reasons)])

    monkeypatch.setattr(verification, "open_meter", device)
    monkeypatch.setattr(conditions, "_COOLING_S", 0.0)
    recipe = models.with_gates(models.recipe(tmp_path, "onnxruntime"), Gates(min_speedup=0.001))
    report = trtbuild.build(recipe, tmp_path / "store")
    found = report.engines[0].verification
    assert (found.latency_ms, found.speedup, found.baseline_latency_ms) == (None, None, None)
    assert "throttled (power cap)" in found.no_latency
    gate = next(gate for gate in found.gates if gate.name == "min_speedup")
    assert (gate.passed, gate.skipped, report.exit_code) == (False, False, 5)
    assert "power cap" in gate.detail
    store = Store.open(str(tmp_path / "store"))
    flush(store)
    assert ("run", "bypass") in {(each.kind, each.outcome) for each in totals(store)}
    reasons.clear()
    again = trtbuild.build(recipe, tmp_path / "store")
    assert models.computed(again) == ["time"]
    assert again.passed
    assert again.engines[0].verification.latency_ms is not None
