"""Every attack of the corpus is refused by its own check, before a runtime sees a byte."""

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

OPENED = {"outputs_that_the_manifest_does_not_have_without_a_first_load"}
"""Refused by what the session itself says, under a policy that wants no child process."""


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
    expected = ["session"] if name in OPENED else ["child"] if code == "T15" else []
    assert outcome["events"] == expected


def test_the_good_engine_is_loaded_and_remembered(outcomes: Any) -> None:  # noqa: ANN401  decoded
    good = outcomes["good"]
    assert good["code"] == "loaded"
    assert good["memory_changed"]
    assert good["events"] == ["child", "session"], "the hooks see nothing"


def test_every_code_is_reached_and_there_are_enough_attacks() -> None:
    assert {code for code, _ in CASES.values()} == set(CODES)
    assert len(CASES) >= 100
