from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.farm.recipes import BAD, ELSEWHERE, FLOAT, GOOD, make_folder, trtbuild
from trtbuild.backends import processor
from trtbuild.farm.nightly import Night

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

HERE = f"onnxruntime:{processor.arch()}"


@dataclass(frozen=True)
class Workplace:
    """A folder of recipes, a store, and what the first night printed and wrote."""

    top: Path
    folder: Path
    first: subprocess.CompletedProcess[str]

    def nightly(
        self, *arguments: str | Path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return nightly(self.folder, self.top / "store", *arguments, **environment)

    def document(self, *arguments: str) -> Any:  # noqa: ANN401  decoded JSON
        return json.loads(self.nightly(*arguments).stdout)


def nightly(
    folder: Path, store: Path, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
    return trtbuild(
        "nightly", folder, "--store", store, *arguments, environment=kept | environment
    )


def night_of(done: subprocess.CompletedProcess[str]) -> Night:
    return msgspec.json.decode(done.stdout, type=Night)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    top = tmp_path_factory.mktemp("nightly")
    folder = make_folder(top, GOOD | BAD)
    (top / "summary.md").write_text("before\n")
    files = ("--junit", top / "ci" / "junit.xml", "--markdown", top / "night.md")
    summary = str(top / "summary.md")
    first = nightly(
        folder, top / "store", "--json", *files, TERM="dumb", GITHUB_STEP_SUMMARY=summary
    )
    return Workplace(top, folder, first)


def test_every_recipe_has_an_outcome_whatever_the_others_do(work: Workplace) -> None:
    night = night_of(work.first)
    assert (work.first.returncode, night.exit_code, night.passed) == (5, 5, False)
    assert [outcome.recipe for outcome in night.outcomes] == sorted(GOOD | BAD)
    reports = {report.recipe: report for report in night.reports}
    assert {name: report.passed for name, report in reports.items()} == {
        "elsewhere": True,
        "float": True,
        "lenient": True,
        "strict": False,
    }
    assert [engine.target for engine in reports["lenient"].engines] == [HERE]
    assert reports["lenient"].engines[0].precision_achieved == {"int8": 2}
    codes = {name: failure.exit_code for name, failure in night.failures.items()}
    assert codes == {"broken": 2, "dies": 4, "raises": 2, "unknown": 2}


def test_a_failure_says_what_happened_in_the_words_of_its_cause(work: Workplace) -> None:
    messages = {name: f.message for name, f in night_of(work.first).failures.items()}
    assert "broken.toml: not valid TOML" in messages["broken"]
    assert "the disk is empty" in messages["raises"]
    assert "raises.py: calibration_batches: batch 0" in messages["raises"]
    assert "no backend is called 'cuda'" in messages["unknown"]
    assert "Segmentation fault" in messages["dies"]
    assert "Traceback" not in "".join(messages.values())


def test_a_recipe_without_a_target_here_is_skipped_not_in_error(work: Workplace) -> None:
    reports = {report.recipe: report for report in night_of(work.first).reports}
    assert reports["elsewhere"].engines == ()
    for name in ("elsewhere", "lenient"):
        (skipped,) = reports[name].skipped_targets
        assert skipped.target == ELSEWHERE
        assert "riscv64" in skipped.reason
    assert work.nightly("--only", "elsewhere").returncode == 0


def test_progress_names_the_recipe_and_quiet_has_none(work: Workplace) -> None:
    assert " lenient | calibrate" in work.first.stderr
    assert " strict FAILED a gate" in work.first.stderr
    assert " raises is in error" in work.first.stderr
    assert work.nightly("--only", "float", "-q").stderr == ""


def test_junit_has_a_failure_per_gate_and_an_error_per_recipe(work: Workplace) -> None:
    root = ET.parse(work.top / "ci" / "junit.xml").getroot()  # noqa: S314  written by us
    suites = {suite.get("name"): suite for suite in root}
    assert set(suites) == set(GOOD | BAD)
    counts = {kind: int(root.get(kind, "")) for kind in ("failures", "errors")}
    assert counts == {"failures": 1, "errors": 4}
    failed = suites["strict"].findall("testcase/failure/..")
    assert [case.get("name") for case in failed] == ["max_drop on the target device"]
    (error,) = suites["raises"].findall("testcase/error")
    assert "the disk is empty" in str(error.get("message"))
    (skipped,) = suites["elsewhere"].findall("testcase/skipped")
    assert "riscv64" in str(skipped.get("message"))


def test_markdown_goes_to_its_file_and_behind_the_summary_of_the_job(work: Workplace) -> None:
    page = (work.top / "night.md").read_text()
    assert page.startswith("# trtbuild nightly\n\n**FAILED: ")
    assert "\n# lenient\n" in page
    assert "\n# elsewhere\n" not in page
    assert (work.top / "summary.md").read_text() == f"before\n{page}"


def test_a_second_night_takes_everything_from_the_store(work: Workplace) -> None:
    done = work.nightly("--json", "--only", "[efls]*")
    assert done.returncode == 5
    before = {report.recipe: report for report in night_of(work.first).reports}
    for report in night_of(done).reports:
        if report.recipe != "elsewhere":
            assert report.full_cache_hit
            keys = [engine.key for engine in before[report.recipe].engines]
            assert [engine.key for engine in report.engines] == keys
    assert " lenient passed (full cache hit)" in done.stderr
    assert " lenient | " not in done.stderr


def test_the_table_shows_engines_gates_skips_and_errors(work: Workplace) -> None:
    text = work.nightly("--only", "[!d]*").stdout
    rows = [line.split() for line in text.splitlines()]
    assert ["float", HERE, "passed", "cached"] in [row[:4] for row in rows]
    assert ["strict", HERE, "FAILED", "cached"] in [row[:4] for row in rows]
    assert "max_drop failed: drop +" in text
    assert "    try: " in text
    assert "raises (exit code 2): raises.py" in text
    assert ["elsewhere", ELSEWHERE] in [row[:2] for row in rows]
    assert text.splitlines()[-1] == (
        "FAILED: 3 engines of 7 recipes, 1 engine failed a gate, 3 recipes in error, "
        "2 targets skipped"
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--only", "lenient"), 0),
        (("--only", "lenient", "--strict"), 5),
        (("--only", "[bf]*"), 2),
    ],
)
def test_the_exit_code_is_of_the_worst_that_happened(
    work: Workplace, arguments: tuple[str, ...], code: int
) -> None:
    assert work.nightly(*arguments).returncode == code


def test_a_plan_says_what_is_cached_and_builds_nothing(work: Workplace, tmp_path: Path) -> None:
    fresh = nightly(work.folder, tmp_path / "fresh", "--plan", "--json")
    assert fresh.returncode == 2
    recipes = {each["recipe"]: each for each in json.loads(fresh.stdout)["recipes"]}
    states = {
        name: [(cell["target"], cell["state"]) for cell in each["targets"]]
        for name, each in recipes.items()
    }
    assert states["float"] == [(HERE, "to build")]
    assert states["lenient"] == [(HERE, "to build"), (ELSEWHERE, "skipped")]
    assert states["elsewhere"] == [(ELSEWHERE, "skipped")]
    assert states["broken"] == []
    assert "not valid TOML" in recipes["broken"]["failure"]["message"]
    assert list((tmp_path / "fresh" / "v1" / "cas" / "sha256").iterdir()) == []
    known = {each["recipe"]: each for each in work.document("--plan", "--json")["recipes"]}
    assert [cell["state"] for cell in known["lenient"]["targets"]] == ["cached", "skipped"]
    table = work.nightly("--plan").stdout
    assert ["float", HERE, "cached", "-"] in [line.split() for line in table.splitlines()]
    assert table.splitlines()[-1] == "2 to build, 3 cached, 2 skipped, 2 recipes in error"


def test_a_changed_recipe_is_to_build_and_the_others_stay_cached(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"one": FLOAT, "two": FLOAT})
    store = tmp_path / "store"
    assert nightly(folder, store).returncode == 0
    (folder / "two.toml").write_text(f"{FLOAT}[build.options]\noptimization_level = 2\n")
    assert nightly(folder, store, "--only", "two").returncode == 2
    profile = "[build.profiles.x]\nmin = [1, 16]\nopt = [2, 16]\nmax = [4, 16]\n"
    (folder / "two.toml").write_text(FLOAT + profile)
    done = nightly(folder, store, "--plan", "--format", "github-matrix")
    assert [entry["recipe"] for entry in json.loads(done.stdout)["include"]] == ["two"]
    night = night_of(nightly(folder, store, "--json"))
    assert [report.full_cache_hit for report in night.reports] == [True, False]


def test_a_github_matrix_is_one_line_with_a_job_per_recipe_to_build(work: Workplace) -> None:
    done = work.nightly("--plan", "--format", "github-matrix")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    include = json.loads(done.stdout)["include"]
    # What is cached or skipped has no job; what is in error has one, and fails there.
    assert [entry["recipe"] for entry in include] == ["broken", "dies", "raises", "unknown"]
    for entry in include:
        assert set(entry) == {"recipe", "only", "path", "targets"}
        assert all(isinstance(value, str) for value in entry.values())
    assert [entry["targets"] for entry in include] == ["", HERE, HERE, ""]


def test_wrong_calls_are_one_line_and_exit_code_2(work: Workplace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    calls: tuple[tuple[tuple[str | Path, ...], str], ...] = (
        (("--only", "nothing"), "matches no recipe"),
        (("--format", "json"), "--plan"),
        (("--plan", "--format", "jenkins"), "github-matrix"),
        (("--plan", "--json", "--format", "gitlab"), "two documents"),
        (("--plan", "--junit", "j.xml"), "drop --plan"),
        (("--junit", tmp_path / "file" / "j.xml"), "cannot be written"),
    )
    for arguments, expected in calls:
        done = work.nightly(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert expected in done.stderr
    for folder, expected in ((tmp_path, "no recipe"), (tmp_path / "none", "no such folder")):
        done = nightly(folder, tmp_path / "store")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert expected in done.stderr
