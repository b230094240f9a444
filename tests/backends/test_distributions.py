"""Versions and lists of files as importlib.metadata finds them, for all that is installed."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

from trtbuild.backends import distributions, fingerprint, trt_session

if TYPE_CHECKING:
    from pathlib import Path


def test_all_that_is_installed_is_found_as_importlib_finds_it() -> None:
    names = sorted({each.name for each in metadata.distributions() if each.name})
    assert len(names) > 20
    for name in names:
        expected = metadata.distribution(name)
        found = distributions.find(name)
        assert found is not None
        assert (found.version, found.record) == (expected.version, expected.read_text("RECORD"))
        for spelled in (name.upper(), name.replace("-", "_"), name.replace("_", ".")):
            assert distributions.version(spelled) == expected.version


def install(folder: Path, name: str, version: str) -> None:
    place = folder / name
    place.mkdir(parents=True)
    file = "METADATA" if name.endswith(".dist-info") else "PKG-INFO"
    text = f"Metadata-Version: 2.1\nName: some\nVersion: {version}\n\nVersion: 99\n"
    (place / file).write_text(text)


def test_the_first_folder_on_the_path_counts_however_it_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    install(second, "Some_Lib-2.0.dist-info", "2.0+cpu")
    first.mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path / "none"), str(first), str(second)])
    assert distributions.version("some.lib") == "2.0+cpu"
    install(first, "some_lib-1.0.egg-info", "1.0")
    assert distributions.version("some.lib") == "1.0"


def test_an_installation_that_was_broken_off_has_no_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some-1.0.dist-info").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert not distributions.version("some")
    assert not distributions.version("another")
    assert distributions.find("another") is None


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        (
            ("tensorrt-8.6.1.post1", "tensorrt_libs-8.6.1", "tensorrt_bindings-8.6.1"),
            ("tensorrt_libs", "8.6.1", 0),
        ),
        (("tensorrt-8.6.0",), ("tensorrt", "8.6.0", 0)),
        (
            ("tensorrt-10.13.0", "tensorrt_cu12-10.13.0", "tensorrt_cu12_libs-10.13.0.35"),
            ("tensorrt_cu12_libs", "10.13.0.35", 12),
        ),
    ],
    ids=["8.6.1", "8.6.0", "10"],
)
def test_builds_and_loads_know_one_version_of_one_library(
    installed: tuple[str, ...],
    expected: tuple[str, str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for each in installed:
        install(tmp_path, f"{each}.dist-info", each.partition("-")[2])
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    library = trt_session.here("tensorrt").installed
    assert library is not None
    name = fingerprint.layout("tensorrt")[0]
    assert (name, library.version, library.cuda_major) == expected
