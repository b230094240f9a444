"""Sessions above the real PyCUDA and cuda-bindings, whose driver is ``fake_driver.c``.

PyCUDA is the one that ``.ci/stub-pycuda`` has built, in the folder ``TRTBUILD_STUB_PYCUDA``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
STUB = os.environ.get("TRTBUILD_STUB_PYCUDA", "")
NAMES = ["host_arrays", "graphs", "device_arrays", "late_outputs", "lanes", "bare_loop"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the fake driver's library."""
    compiler = shutil.which("cc")
    if not (STUB and compiler and importlib.util.find_spec("cuda")):
        pytest.skip("needs PyCUDA of .ci/stub-pycuda, cuda-bindings and a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    text = (HERE / "fake_driver.c").read_text()
    (module,) = Path(STUB, "site/pycuda").glob("_driver*.so")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", module], capture_output=True, text=True, check=True
    )
    own = set(re.findall(r"^int (cu\w+)\(", text, re.MULTILINE))
    rest = set(re.findall(r" U (cu[A-Z]\w*)", listed.stdout)) - own
    source = folder / "driver.c"
    source.write_text(text + "".join(f"int {name}(void) {{ return 0; }}\n" for name in rest))
    library = folder / "libcuda.so.1"
    kind = ["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([compiler, *kind, "-o", str(library), str(source), "-ldl"], check=True)
    return folder


def left(driver: Path, *arguments: str, **environment: str) -> dict[str, int]:
    """Return what a program on the fake driver did not free."""
    path = os.pathsep.join((f"{STUB}/site", os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.on_fake_driver", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=HERE.parents[1],
        env={**os.environ, "LD_LIBRARY_PATH": str(driver), "PYTHONPATH": path, **environment},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def nothing(found: dict[str, int]) -> bool:
    return not any(found.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_session_computes_and_frees_everything(name: str, driver: Path) -> None:
    assert nothing(left(driver, name))


def test_a_capture_that_fails_costs_no_result_and_frees_everything(driver: Path) -> None:
    assert nothing(left(driver, "graphs", FAKE_CAPTURE_FAILS="1"))


def test_many_calls_keep_no_memory(driver: Path) -> None:
    assert nothing(left(driver, "many_calls", "5000"))


@pytest.mark.nightly
def test_100000_calls_keep_no_memory(driver: Path) -> None:
    assert nothing(left(driver, "many_calls", "100000"))
