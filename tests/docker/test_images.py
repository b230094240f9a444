"""The images: linted, pinned, and not run as root."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def test_there_is_an_image_for_building_serving_and_ci() -> None:
    assert [path.stem for path in FILES] == ["build", "ci", "serve"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_base_images_are_pinned_to_a_patch_release(path: Path) -> None:
    bases = re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE)
    assert bases
    assert all(re.search(r":\d+\.\d+\.\d+-", base) for base in bases)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_last_stage_ends_as_a_user_without_rights(path: Path) -> None:
    last_stage = path.read_text().rpartition("\nFROM ")[2] or path.read_text()
    users = re.findall(r"^USER (\S+)", last_stage, re.MULTILINE)
    assert users == ["10001"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_an_image_copies_or_installs_from_is_in_the_repository(path: Path) -> None:
    text = path.read_text()
    copied = [
        name
        for line in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", text, re.MULTILINE)
        for name in line.split()
    ]
    locks = re.findall(r"-r (\S+)", text)
    assert copied
    assert [name for name in (*copied, *locks) if not (ROOT / name).exists()] == []
