"""What user code read is recorded, and a change of any of it is noticed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from trtbuild.backends import distributions
from trtbuild.sources.dependencies import Distribution, changed
from trtbuild.sources.tracing import traced
from trtbuild.sources.user_code import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.sources.dependencies import Dependencies


def trace_factory(folder: Path, body: str) -> Dependencies:
    """Trace a factory whose code is ``body``, run in a file of ``folder``."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    head = "import os\nfrom pathlib import Path\n\nHERE = Path(__file__).parent\n"
    text = f"{head}\n\ndef model():\n{lines}"
    (folder / "net.py").write_text(text)
    _, dependencies = traced(lambda: load("net.py:model", folder).call())
    return dependencies


def names(dependencies: Dependencies) -> set[str]:
    return {Path(file.path).name for file in dependencies.files}


def test_nothing_has_changed_right_after_a_trace(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"1")
    dependencies = trace_factory(tmp_path, "return (HERE / 'weights.bin').read_bytes()")
    assert names(dependencies) == {"net.py", "weights.bin"}
    assert changed(dependencies) == ""


def edit_weights(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"2")


def edit_code(folder: Path) -> None:
    (folder / "net.py").write_text("def model():\n    return 2\n")


def edit_import(folder: Path) -> None:
    (folder / "traced_layers.py").write_text("WIDTH = 2\n")


def remove_weights(folder: Path) -> None:
    (folder / "weights.bin").unlink()


def add_sample(folder: Path) -> None:
    (folder / "samples" / "b.txt").write_text("b")


def create_override(folder: Path) -> None:
    (folder / "override.bin").write_bytes(b"3")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (edit_weights, "weights.bin has changed"),
        (edit_code, "net.py has changed"),
        (edit_import, "traced_layers.py has changed"),
        (remove_weights, "weights.bin is gone"),
        (add_sample, "samples"),
        (create_override, "override.bin is new"),
    ],
)
def test_a_change_is_noticed_and_named(
    change: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    (tmp_path / "weights.bin").write_bytes(b"1")
    (tmp_path / "traced_layers.py").write_text("WIDTH = 1\n")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.txt").write_text("a")
    body = (
        "import traced_layers\n"
        "os.listdir(HERE / 'samples')\n"
        "try:\n"
        "    open(HERE / 'override.bin', 'rb').close()\n"
        "except FileNotFoundError:\n"
        "    pass\n"
        "return (HERE / 'weights.bin').read_bytes()"
    )
    dependencies = trace_factory(tmp_path, body)
    assert changed(dependencies) == ""
    change(tmp_path)
    assert told in changed(dependencies)


def test_another_version_of_an_imported_package_is_a_change(tmp_path: Path) -> None:
    dependencies = trace_factory(tmp_path, "import numpy\nreturn numpy.zeros(1)")
    assert dependencies.distributions == (
        Distribution(name="numpy", version=distributions.version("numpy")),
    )
    older = Distribution(name="numpy", version="0.1")
    told = changed(msgspec.structs.replace(dependencies, distributions=(older,)))
    assert "numpy was 0.1" in told


def test_arrays_that_numpy_reads_or_maps_are_seen(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros(3))
    np.save(tmp_path / "mapped.npy", np.zeros(3))
    body = (
        "import numpy\n"
        "numpy.load(HERE / 'data.npz')['x']\n"
        "return numpy.load(HERE / 'mapped.npy', mmap_mode='r')"
    )
    assert names(trace_factory(tmp_path, body)) == {"net.py", "data.npz", "mapped.npy"}


def test_a_declared_file_counts_as_read(tmp_path: Path) -> None:
    (tmp_path / "native.bin").write_bytes(b"1")
    (tmp_path / "net.py").write_text(
        "FILES = ('native.bin',)\n\n\ndef model():\n    return 1\n"
    )
    _, dependencies = traced(lambda: load("net.py:model", tmp_path).call())
    assert names(dependencies) == {"net.py", "native.bin"}


def test_a_file_that_the_code_wrote_itself_does_not_count(tmp_path: Path) -> None:
    body = "(HERE / 'cache.bin').write_bytes(b'1')\nreturn (HERE / 'cache.bin').read_bytes()"
    assert names(trace_factory(tmp_path, body)) == {"net.py"}


def test_code_that_is_loaded_already_is_traced_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "table.txt").write_text("1")
    text = "TABLE = (Path(__file__).parent / 'table.txt').read_text()\n"
    (tmp_path / "net.py").write_text(
        f"from pathlib import Path\n\n{text}\n\ndef model():\n    return TABLE\n"
    )
    first = traced(lambda: load("net.py:model", tmp_path).call())
    assert traced(lambda: load("net.py:model", tmp_path).call()) == first
    assert names(first[1]) == {"net.py", "table.txt"}


def test_importing_does_not_count_as_listing_the_folder(tmp_path: Path) -> None:
    (tmp_path / "fresh_layers.py").write_text("WIDTH = 1\n")
    dependencies = trace_factory(tmp_path, "import fresh_layers\nreturn fresh_layers.WIDTH")
    assert dependencies.folders == ()


def test_asking_for_a_version_counts_as_nothing(tmp_path: Path) -> None:
    body = "import importlib.metadata\nreturn importlib.metadata.version('numpy')"
    dependencies = trace_factory(tmp_path, body)
    assert names(dependencies) == {"net.py"}
    assert dependencies.folders == ()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no file system in memory here")  # noqa: S108  where Linux has it
def test_files_of_the_file_system_in_memory_count_as_any_others() -> None:
    """It lies below /dev, of which nothing else is the user's: a changed model was a hit."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        (folder / "weights.bin").write_bytes(b"1")
        dependencies = trace_factory(folder, "return (HERE / 'weights.bin').read_bytes()")
        assert names(dependencies) == {"net.py", "weights.bin"}
        edit_weights(folder)
        assert "weights.bin has changed" in changed(dependencies)


def test_files_that_an_administrator_wrote_count_and_devices_do_not(tmp_path: Path) -> None:
    body = "open('/dev/null').close()\nopen('/proc/self/stat').close()\n"
    body += "return Path('/etc/passwd').read_text()"
    assert names(trace_factory(tmp_path, body)) == {"net.py", "passwd"}
