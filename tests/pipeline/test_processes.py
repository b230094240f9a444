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
from trtbuild.store import Store

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
    quantized = ("export", "optimize", "calibrate", "quantize")
    assert worked == [[*quantized, "scan", "cast", "cast", "build", "verify"]]
    assert len(answer["computed"]) == 16


def test_builds_that_are_killed_leave_a_store_that_answers_correctly(tmp_path: Path) -> None:
    answer = run("killed", tmp_path, 20)
    assert answer["alive"] >= 5
    assert not answer["left"]
    assert not answer["bad"]
    assert answer["passed"] == answer["asked"]


@pytest.mark.parametrize("limit_bytes", [6_000, 40_000])
def test_a_full_disk_is_told_and_leaves_no_engine(limit_bytes: int, tmp_path: Path) -> None:
    """A limit on the size of files stands in for it: first a graph, then an engine fails."""
    models.classifier(tmp_path / "model.onnx")
    models.data(tmp_path / "data.npz", count=2)
    limited = (
        "import resource, trtbuild.cli\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))\n"
        "trtbuild.cli.main()\n"
    )
    options = ("--precision", "int8", "--method", "minmax", "--calibration", "data.npz", "-q")
    done = subprocess.run(
        [sys.executable, "-c", limited, "engine", "model.onnx", *options, "--arch", "sm_89"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TRTBUILD_STORE": str(tmp_path / "store")},
    )
    assert (done.returncode, done.stdout) == (6, "")
    (message,) = done.stderr.splitlines()
    assert "File too large" in message
    assert "--store" in message
    store = Store.open(str(tmp_path / "store"))
    assert not list(store.records("engine"))
    assert not list((store.top / "tmp").iterdir())
