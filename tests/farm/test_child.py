from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.farm.recipes import FLOAT, PROVIDER, ROOT, int8, make_folder
from trtbuild.farm import child
from trtbuild.farm.matrix import Failure
from trtbuild.report.document import Report

if TYPE_CHECKING:
    from pathlib import Path


def recipe(top: Path, provider: str) -> Path:
    folder = make_folder(top, {"one": int8("provider.py", 1.0, "onnxruntime")})
    (top / "provider.py").write_text(provider)
    return folder / "one.toml"


@pytest.fixture(autouse=True)
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m trtbuild`` finds the package in the current folder."""
    monkeypatch.chdir(ROOT)


def test_a_report_comes_back_whatever_user_code_prints(tmp_path: Path) -> None:
    lines: list[str] = []
    path = recipe(tmp_path, f"print('hello from a provider')\n{PROVIDER}")
    found = child.build(path, tmp_path / "store", lines.append)
    assert isinstance(found, Report)
    assert found.recipe == "one"
    assert "hello from a provider" in lines
    assert "read data" in lines


def test_a_process_left_behind_does_not_hold_up_the_night(tmp_path: Path) -> None:
    # It inherits both streams of the child: with pipes, their end would never come.
    pid = tmp_path / "pid"
    leave = (
        "import subprocess\n"
        f"left = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(pid)!r}, 'w').write(str(left.pid))\n"
        "left.returncode = 0\n"
    )
    try:
        found = child.build(recipe(tmp_path, leave + PROVIDER), tmp_path / "store", print)
        assert isinstance(found, Report)
        os.kill(int(pid.read_text()), 0)
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_code_that_ends_the_process_is_a_failure_not_a_report(tmp_path: Path) -> None:
    ends = PROVIDER.replace("return _batches(1)", "import os; os._exit(0)")
    found = child.build(recipe(tmp_path, ends), tmp_path / "store", print)
    assert isinstance(found, Failure)
    assert "printed no report" in found.message
    assert found.exit_code == 1


def test_an_interrupted_night_leaves_no_child(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"one": int8("provider.py", 1.0, "onnxruntime")})
    pid = tmp_path / "pid"
    waits = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    (tmp_path / "provider.py").write_text(PROVIDER.replace("return _batches(1)", waits))
    night = subprocess.Popen(
        [sys.executable, "-m", "trtbuild", "nightly", str(folder)],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not pid.exists() or not pid.read_text():
        assert night.poll() is None
        time.sleep(0.05)
    night.send_signal(signal.SIGINT)  # a terminal would send it to the child too
    _, said = night.communicate(timeout=60)
    assert night.returncode == 130
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_message_of_several_lines_is_kept_whole(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"one": FLOAT})
    (tmp_path / "model.onnx").write_bytes(b"no model")
    found = child.build(folder / "one.toml", tmp_path / "store", print)
    assert isinstance(found, Failure)
    assert found.exit_code == 2
    assert found.message.startswith(str(tmp_path / "model.onnx"))
    assert not found.message.startswith("error: ")
