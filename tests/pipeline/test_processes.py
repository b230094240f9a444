"""Many processes, and processes that die: one build, and a store that answers correctly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline import models

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.rtx


def run(what: str, folder: Path, count: int) -> Any:  # noqa: ANN401  decoded JSON
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.pipeline.processes",
            what,
            folder,
            str(count),
            models.GPU,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_who_asks_for_one_engine_at_one_time_gets_one_build(tmp_path: Path) -> None:
    answer = run("stampede", tmp_path, 16)
    assert answer["failed"] == 0
    assert answer["engines"] == 1
    assert len(answer["digests"]) == 1
    worked = [stages for stages in answer["computed"] if stages]
    assert worked == [["export", "optimize", "calibrate", "quantize", "build", "verify"]]
    assert len(answer["computed"]) == 16


def test_builds_that_are_killed_leave_a_store_that_answers_correctly(tmp_path: Path) -> None:
    answer = run("killed", tmp_path, 20)
    assert answer["alive"] >= 5
    assert not answer["left"]
    assert not answer["bad"]
    assert answer["passed"] == answer["asked"]
