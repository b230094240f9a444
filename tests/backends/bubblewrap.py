"""The program bwrap for tests: the one on PATH, or Debian's, unpacked without any right."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from trtbuild.backends import sandbox


@functools.cache
def _fetched() -> Path | None:
    folder = Path(tempfile.gettempdir()) / f"trtbuild-bubblewrap-{os.getuid()}"
    program = folder / "usr" / "bin" / "bwrap"
    if program.exists():
        return program.parent
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        return None
    folder.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        get = ["apt-get", "download", "-q", "bubblewrap"]
        if subprocess.run(get, cwd=name, capture_output=True, check=False).returncode:
            return None
        (package,) = Path(name).glob("*.deb")
        subprocess.run(["dpkg", "-x", package, folder], check=True)
    return program.parent if program.exists() else None


def require(monkeypatch: pytest.MonkeyPatch) -> str:
    """Put bwrap on PATH and have it required, or skip the test."""
    if not shutil.which("bwrap"):
        folder = _fetched()
        if folder is None:
            pytest.skip("bubblewrap is neither installed nor to be had here")
        monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{folder}")
    monkeypatch.setenv(sandbox.VARIABLE, "require")
    found = sandbox.tried(shutil.which("bwrap") or "")
    if not found.program:
        pytest.skip(found.reason)
    return found.program
