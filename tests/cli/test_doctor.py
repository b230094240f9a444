"""The doctor says what is there, what is missing and what is broken, and never fails itself."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from trtbuild.backends import NAMES
from trtbuild.cli.doctor import doctor, lines
from trtbuild.cli.installation import LIBRARIES, Check, library_check, store_check, tier_checks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from trtbuild.cli.installation import Library

app = typer.Typer()
app.command()(doctor)


PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
PYCUDA = next(library for library in LIBRARIES if library.name == "pycuda")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages that this process and its children see first."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def install_pycuda(site: Path, driver: str) -> None:
    """Install a package with PyCUDA's names whose driver module is ``driver``."""
    (site / "pycuda").mkdir()
    (site / "pycuda/__init__.py").touch()
    (site / "pycuda/driver.py").write_text(driver)
    (site / "pycuda-2026.1.dist-info").mkdir()
    metadata = site / "pycuda-2026.1.dist-info/METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: pycuda\nVersion: 2026.1\n")


def test_every_backend_and_framework_is_looked_for() -> None:
    assert {library.name for library in LIBRARIES} >= {*NAMES, "torch", "pycuda"}


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_the_extra_that_a_remedy_names_has_the_library(library: Library) -> None:
    extra = re.fullmatch(r"pip install 'trtbuild\[(\w+)\]'", library.install)
    if extra:
        named = {_distribution(each) for each in EXTRAS[extra[1]]}
        assert named & set(library.distributions)


def test_everything_that_runs_an_engine_on_a_gpu_is_looked_for() -> None:
    looked_for = {name for library in LIBRARIES for name in library.distributions}
    assert {_distribution(each) for each in EXTRAS["gpu"]} <= looked_for


def _distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]


@pytest.mark.rtx
@pytest.mark.parametrize("name", ["onnxruntime", "tensorrt-rtx"])
def test_an_installed_backend_is_found_with_its_version(name: str) -> None:
    found = library_check(next(library for library in LIBRARIES if library.name == name))
    assert (found.group, found.state, found.remedy) == ("backends", "ok", "")
    assert found.version


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_what_is_missing_comes_with_the_line_that_installs_it(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdlib = [folder for folder in sys.path if "site-packages" not in folder]
    monkeypatch.setattr(sys, "path", stdlib)
    found = library_check(library)
    assert found.state == "missing"
    assert found.remedy.startswith("pip install ")


def test_a_library_that_needs_the_driver_is_broken_with_that_remedy(site: Path) -> None:
    reason = "libcuda.so.1: cannot open shared object file: No such file or directory"
    install_pycuda(site, f"raise ImportError({reason!r})")
    found = library_check(PYCUDA)
    assert (found.state, found.version) == ("broken", "2026.1")
    assert reason in found.detail
    assert "NVIDIA driver" in found.remedy


def test_a_library_that_kills_its_process_does_not_kill_the_doctor(site: Path) -> None:
    install_pycuda(site, "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    found = library_check(PYCUDA)
    assert (found.state, found.detail) == ("broken", "died of signal 11")
    assert "--force-reinstall" in found.remedy


def test_json_has_a_check_in_every_group(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    document = CliRunner().invoke(app, ["--store", store, "--json"])
    assert document.exit_code == 0
    checks = json.loads(document.stdout)["checks"]
    groups = ["machine", "backends", "frameworks", "gpu", "store", "trust"]
    assert list(dict.fromkeys(check["group"] for check in checks)) == groups
    assert {library.name for library in LIBRARIES} <= {check["name"] for check in checks}


def test_the_text_has_one_heading_per_group_and_the_remedy_below_its_check() -> None:
    checks = (
        Check(group="gpu", name="nvidia driver", state="ok", version="580.65"),
        Check(group="gpu", name="pycuda", state="missing", detail="memory", remedy="pip x"),
        Check(group="store", name="/a", state="ok"),
    )
    assert list(lines(checks)) == [
        "",
        "gpu",
        "  ok       nvidia driver    580.65",
        "  missing  pycuda           memory",
        "                            -> pip x",
        "",
        "store",
        "  ok       /a",
    ]


def test_looking_at_a_store_does_not_make_it(tmp_path: Path) -> None:
    found = store_check(str(tmp_path / "deep/store"))
    assert found.state == "ok"
    assert "made at first use" in found.detail
    assert not (tmp_path / "deep").exists()


def test_a_store_that_others_may_write_to_is_broken(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    found = store_check(str(tmp_path))
    assert found.state == "broken"
    assert "chmod go-w" in found.detail


def test_a_remote_tier_that_answers_is_ok_and_others_say_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    uri = f"{tmp_path / 'here'},{share},{tmp_path / 'gone'},ftp://host/x,s3://bucket/engines"
    monkeypatch.setenv("TRTBUILD_OFFLINE", "1")
    found = tier_checks(uri)
    assert [each.state for each in found] == ["ok", "broken", "broken", "missing"]
    assert "gone" in found[1].detail
    assert "ftp" in found[2].detail
    assert "TRTBUILD_OFFLINE" in found[3].detail
    assert store_check(uri).state == "ok"
    assert tier_checks(str(tmp_path)) == []


def test_a_folder_that_cannot_be_written_is_broken_with_a_remedy() -> None:
    found = store_check("/proc/store")
    assert found.state == "broken"
    assert "/proc" in found.detail
    assert "--store" in found.remedy
