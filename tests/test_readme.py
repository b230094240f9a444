"""The README is true: its commands exist, its recipes load, its Python runs.

Blocks are told apart by the language of their fence. ``sh`` and ``bash`` hold commands, one a
line (a backslash continues a line); ``console`` holds commands behind ``$ `` and their output;
``toml`` holds a recipe, or another piece of TOML where it has no ``[source]``; ``python`` must
compile and its imports must work, and ``python run`` is run, in the repository's folder.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main
from typer.testing import CliRunner

from trtbuild.cli.application import app
from trtbuild.recipe import load_recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = {"git", "cd", "pip", "docker", "python", "python3", "export", "curl"}


class Block(NamedTuple):
    place: str
    language: str
    text: str


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w[^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            place = f"{page.relative_to(ROOT)}:{line}"
            found.append(Block(place, match[1].strip(), match[2]))
    return found


BLOCKS = blocks()


def named(*languages: str) -> list[object]:
    return [pytest.param(b, id=b.place) for b in BLOCKS if b.language in languages]


def commands(block: Block) -> list[list[str]]:
    text = block.text.replace("\\\n", " ").replace(" && ", "\n")
    lines = text.splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    parts = [shlex.split(line, comments=True) for line in lines]
    return [part for part in parts if part]


def check_trtbuild(words: list[str]) -> None:
    """Every word that selects a command and every option must be in that command's help."""
    path: list[str] = []
    group = typer.main.get_command(app)
    names = getattr(group, "commands", {})
    for word in words:
        if word not in names:
            break
        path.append(word)
        names = getattr(names[word], "commands", {})
    assert path or words[0].startswith("-"), f"no command is called {words[0]!r}"
    shown = CliRunner().invoke(app, [*path, "--help"])
    assert shown.exit_code == 0
    for word in words:
        if word.startswith("-"):
            option = word.partition("=")[0]
            known = re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", shown.output)
            assert known, f"trtbuild {' '.join(path)} has no option {option}"


def check_command(words: list[str]) -> None:
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    program, *rest = words
    if program == "trtbuild" or program.endswith("/trtbuild"):
        check_trtbuild(rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        wanted = [word for word in rest if "=" not in word]
        assert set(wanted) <= set(targets)
    else:
        assert program in OTHERS, f"unknown program {program!r}"


def test_the_readme_shows_the_two_commands() -> None:
    shown = [
        words
        for block in BLOCKS
        if block.language in {"sh", "bash", "console"}
        for words in commands(block)
    ]
    assert ["make", "demo"] in shown
    assert ["make", "test"] in shown


@pytest.mark.parametrize("block", named("sh", "bash", "console"))
def test_a_command_of_the_readme_exists(block: Block) -> None:
    found = commands(block)
    assert found
    for words in found:
        check_command(words)


@pytest.mark.parametrize("block", named("toml"))
def test_a_recipe_of_the_readme_loads(block: Block, tmp_path: Path) -> None:
    if "source" not in tomllib.loads(block.text):
        return
    path = tmp_path / "recipe.toml"
    path.write_text(block.text)
    load_recipe(path)


@pytest.mark.parametrize("block", named("python", "python run"))
def test_python_of_the_readme_compiles_and_imports(block: Block) -> None:
    tree = ast.parse(block.text)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    ours = [node for node in imports if "trtbuild" in ast.unparse(node)]
    code = ast.unparse(ast.Module(body=list(ours), type_ignores=[]))
    compile(block.text, block.place, "exec")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)


@pytest.mark.frameworks
@pytest.mark.parametrize("block", named("python run"))
def test_python_of_the_readme_runs(block: Block) -> None:
    subprocess.run([sys.executable, "-c", block.text], check=True, timeout=600, cwd=ROOT)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_of_a_page_lead_to_files_of_the_repository(page: Path) -> None:
    targets = re.findall(
        r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8")
    )
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []
