from __future__ import annotations

import fnmatch
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from trtbuild.errors import UsageError
from trtbuild.farm.ci import GITHUB_JOBS, github_matrix, gitlab_pipeline
from trtbuild.farm.matrix import Cell, Failure, RecipePlan

if TYPE_CHECKING:
    from trtbuild.farm.matrix import State


def plan(name: str, *states: State) -> RecipePlan:
    cells = tuple(
        Cell(target=f"tensorrt-rtx:sm_{80 + i}", state=state) for i, state in enumerate(states)
    )
    return RecipePlan(recipe=name, path=f"engines/{name}.toml", cells=cells)


PLANS = [
    plan("half", "to build", "skipped", "to build"),
    plan("known", "cached", "skipped"),
    plan("odd [v2] $HOME's *", "to build"),
    RecipePlan(recipe="wrong", path="w.toml", failure=Failure(message="no", exit_code=2)),
]


def test_a_matrix_names_only_what_is_to_build_and_what_is_in_error() -> None:
    include = github_matrix(PLANS)["include"]
    assert [entry["recipe"] for entry in include] == ["half", "odd [v2] $HOME's *", "wrong"]
    assert include[0]["targets"] == "tensorrt-rtx:sm_80,tensorrt-rtx:sm_82"


def test_the_pattern_of_a_job_matches_its_recipe_alone() -> None:
    names = [each.recipe for each in PLANS]
    for entry in github_matrix(PLANS)["include"]:
        matches = [name for name in names if fnmatch.fnmatchcase(name, entry["only"])]
        assert matches == [entry["recipe"]]


def test_more_jobs_than_github_runs_are_refused() -> None:
    plans = [plan(f"recipe-{number}", "to build") for number in range(GITHUB_JOBS + 1)]
    assert len(github_matrix(plans[1:])["include"]) == GITHUB_JOBS
    with pytest.raises(UsageError, match="--only"):
        github_matrix(plans)


def test_a_gitlab_pipeline_is_yaml_with_a_job_per_recipe() -> None:
    pipeline = yaml.safe_load(json.dumps(gitlab_pipeline(PLANS, Path("my engines"))))
    assert pipeline.pop("stages") == ["engines"]
    assert list(pipeline) == ["engine half", "engine odd [v2] $HOME's *", "engine wrong"]
    for name, job in pipeline.items():
        assert job["stage"] == "engines"
        (line,) = job["script"]
        words = shlex.split(line)
        assert words[:3] == ["trtbuild", "nightly", "my engines"]
        only, junit = words[words.index("--only") + 1], words[words.index("--junit") + 1]
        assert fnmatch.fnmatchcase(name.removeprefix("engine "), only)
        assert job["artifacts"] == {"when": "always", "reports": {"junit": junit}}


def test_a_gitlab_pipeline_without_work_still_has_a_job() -> None:
    pipeline = gitlab_pipeline([plan("known", "cached")], Path("engines"))
    assert set(pipeline) == {"stages", "nothing to build"}
