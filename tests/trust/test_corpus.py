"""Every attack of the corpus is refused by its own check, before a runtime is even imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trust.corpus import CASES
from trtbuild.trust.refusal import CODES

ROOT = Path(__file__).parents[2]

MACHINE = {"another_processor", "another_version_of_the_library"}
"""Refused by what the runtime's own module knows of this machine, which imports its library."""


@pytest.fixture(scope="module")
def outcomes(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401  decoded
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.trust.corpus", str(built)),
            str(tmp_path_factory.mktemp("corpus")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", sorted(CASES))
def test_an_attack_is_refused_by_its_own_check(name: str, outcomes: Any) -> None:  # noqa: ANN401  decoded
    code, _ = CASES[name]
    outcome = outcomes[name]
    assert outcome["code"] == code
    assert not outcome["memory_changed"], "it was remembered as loaded"
    if code < "T13" or code > "T15":
        assert name in MACHINE or "runtime" not in outcome["events"]
    if code != "T15":
        assert "child" not in outcome["events"]


def test_the_good_engine_is_loaded_and_remembered(outcomes: Any) -> None:  # noqa: ANN401  decoded
    good = outcomes["good"]
    assert good["code"] == "loaded"
    assert good["memory_changed"]
    assert "child" in good["events"], "the hook sees nothing"


def test_every_code_is_reached_and_there_are_enough_attacks() -> None:
    assert {code for code, _ in CASES.values()} == set(CODES)
    assert len(CASES) >= 100
