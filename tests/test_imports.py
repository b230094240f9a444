"""What starts fast stays fast: nothing heavy is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trtbuild.backends import NAMES

HEAVY = {
    "numba",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "polygraphy",
    "rich",
    "safetensors",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
}
HELP = "import sys; sys.argv = ['trtbuild', '--help']; from trtbuild.cli import main; main()"
MODULES = "import sys, {name}; print(*sys.modules)"


def run(code: str) -> str:
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return child.stdout


@pytest.mark.parametrize(
    "name",
    [
        "trtbuild",
        "trtbuild.backends",
        "trtbuild.cli",
        "trtbuild.engine",
        "trtbuild.graph",
        "trtbuild.recipe",
        "trtbuild.report.document",
        "trtbuild.sources.dependencies",
        "trtbuild.store",
    ],
)
def test_a_light_module_loads_nothing_heavy(name: str) -> None:
    loaded = {module.partition(".")[0] for module in run(MODULES.format(name=name)).split()}
    assert "trtbuild" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("name", NAMES)
def test_what_a_service_imports_reads_no_onnx_and_has_no_command_line(name: str) -> None:
    code = "import sys, trtbuild.runtime.load; from trtbuild.backends import runtime;"
    code += f"runtime({name!r});"
    loaded = {module.partition(".")[0] for module in run(f"{code} print(*sys.modules)").split()}
    assert "trtbuild" in loaded
    assert not loaded & {
        "onnx",
        "onnx_ir",
        "onnxscript",
        "polygraphy",
        "rich",
        "torch",
        "typer",
    }


def loaded_by(code: str) -> set[str]:
    """Return the modules that are loaded once ``code`` has run, however it ends."""
    watched = (
        f"import atexit, sys; atexit.register(lambda: print('loaded', *sys.modules)); {code}"
    )
    return set(run(watched).rpartition("loaded")[2].split())


def test_help_loads_typer_and_the_command_line_alone() -> None:
    """Time would depend on the machine: 150 ms of an idle one, of which Typer takes most."""
    more = loaded_by(HELP) - loaded_by("import typer")
    ours = {name for name in more if name.partition(".")[0] == "trtbuild"}
    assert "trtbuild.cli.bench" in ours
    assert {name.partition(".")[0] for name in more} <= {"__future__", "trtbuild", "typer"}
    others = {name for name in ours if not name.startswith("trtbuild.cli.")}
    assert others == {"trtbuild", "trtbuild.cli", "trtbuild.errors", "trtbuild.wording"}


def test_the_command_that_builds_loads_no_other_command() -> None:
    code = "import atexit, sys; atexit.register(lambda: print('loaded', *sys.modules));"
    code += "sys.argv = ['trtbuild', 'engine', '--help'];"
    text, _, loaded = run(f"{code} from trtbuild.cli import main; main()").rpartition("loaded")
    assert "Usage" in text
    commands = {name for name in loaded.split() if name.startswith("trtbuild.cli.")}
    assert commands == {f"trtbuild.cli.{name}" for name in ("engine", "options", "program")}
    assert "cryptography" not in loaded.split()
