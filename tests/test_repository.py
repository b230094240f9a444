"""What the repository promises about itself."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

from trtbuild.recipe import load_recipe

ROOT = Path(__file__).parent.parent
MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="needs the repository, not an unpacked release"
)


@cache
def tracked() -> tuple[Path, ...]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return tuple(path for path in paths if path.is_file())


def lines_of(*suffixes: str) -> list[tuple[Path, int, str]]:
    return [
        (path.relative_to(ROOT), number, line)
        for path in tracked()
        if path.suffix in suffixes
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    ]


def test_no_file_is_larger_than_2_mib_and_all_are_smaller_than_4() -> None:
    sizes = {path.relative_to(ROOT): path.stat().st_size for path in tracked()}
    assert [path for path, size in sizes.items() if size > 2 * MIB] == []
    assert sum(sizes.values()) < 4 * MIB


def test_no_text_holds_a_path_of_somebodys_machine() -> None:
    pattern = re.compile(r"(?<![\w.{$-])/(?:Users|home(?!/user/)|root|work)/\w")
    found = [
        f"{path}:{number}: {line}"
        for path, number, line in lines_of(".py", ".md", ".toml", ".yml", ".yaml", ".txt", "")
        if pattern.search(line)
    ]
    assert found == []


def test_every_exception_from_a_rule_has_its_reason_beside_it() -> None:
    bare = re.compile(r"# (?:noqa: [A-Z0-9, ]*[A-Z0-9]|type: ignore\[[\w, -]+\])\s*$")
    found = [f"{path}:{number}" for path, number, line in lines_of(".py") if bare.search(line)]
    assert found == []


def test_the_changelog_begins_with_this_version_or_what_follows_it() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    versions = [heading.split()[0] for heading in headings]
    assert metadata.version("trtbuild") in versions
    assert versions[0] in {"Unreleased", metadata.version("trtbuild")}


def test_every_pinned_requirement_has_a_hash_and_torch_is_not_among_them() -> None:
    for lock in (ROOT / "requirements").glob("*.txt"):
        if lock.name in {"overrides.txt", "serve.txt", "tests.txt"}:
            continue
        pins = re.findall(r"^(\S+==\S+)(.*)\n(.*)$", lock.read_text(), re.MULTILINE)
        assert pins
        for pin, rest, below in pins:
            assert rest.endswith("\\"), f"{lock.name}: {pin}"
            assert below.lstrip().startswith("--hash=sha256:"), f"{lock.name}: {pin}"
            assert not pin.startswith(("torch==", "nvidia-cu", "triton=="))


@pytest.mark.parametrize(
    ("lock", "others"), [("tests", ("demo", "dev")), ("serve", ("serve", "demo", "gpu", "dev"))]
)
def test_a_lock_of_names_has_its_hashes_in_other_locks(
    lock: str, others: tuple[str, ...]
) -> None:
    folder = ROOT / "requirements"
    named = re.findall(
        r"^[a-z].*?(?= \\$|$)", (folder / f"{lock}.txt").read_text(), re.MULTILINE
    )
    assert named
    files = [str(folder / f"{name}.txt") for name in (lock, *others)]
    command = ["awk", "-f", str(folder / "hashed.awk"), *files]
    joined = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    blocks = re.findall(r"^([a-z].*) \\\n    --hash=sha256:", joined, re.MULTILINE)
    assert sorted(blocks) == sorted(named)


def test_every_recipe_and_provider_is_listed() -> None:
    recipes = sorted((ROOT / "engines").glob("*.toml"))
    assert recipes
    engines = (ROOT / "engines/README.md").read_text()
    calibration = (ROOT / "calibration/README.md").read_text()
    for path in recipes:
        recipe = load_recipe(path)
        assert path.name in engines
        provider = recipe.quantization.provider
        assert provider is not None
        assert (recipe.folder / provider).exists()
        assert Path(provider).name in calibration
