"""User code is found, run once per content, and its failures are told with its own line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from trtbuild.errors import SourceError
from trtbuild.sources.user_code import load

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_function_of_a_file_is_called(tmp_path: Path) -> None:
    write(tmp_path, "models/net.py", "def model():\n    return 7\n")
    assert load("models/net.py:model", tmp_path).call() == 7


def test_a_module_beside_the_recipe_is_found_by_name(tmp_path: Path) -> None:
    write(tmp_path, "pack_a/__init__.py", "")
    write(tmp_path, "pack_a/net.py", "def model():\n    return 'a'\n")
    assert load("pack_a.net:model", tmp_path).call() == "a"


def test_the_file_imports_its_neighbors(tmp_path: Path) -> None:
    write(
        tmp_path,
        "net.py",
        "from layers_of_net import WIDTH\n\n\ndef model():\n    return WIDTH\n",
    )
    write(tmp_path, "layers_of_net.py", "WIDTH = 3\n")
    assert load("net.py:model", tmp_path).call() == 3


def test_a_neighbor_imported_while_the_function_runs_is_found(tmp_path: Path) -> None:
    write(
        tmp_path,
        "net.py",
        "def model():\n    import late_layers\n    return late_layers.WIDTH\n",
    )
    write(tmp_path, "late_layers.py", "WIDTH = 4\n")
    assert load("net.py:model", tmp_path).call() == 4


def test_two_folders_may_use_the_same_module_names(tmp_path: Path) -> None:
    for name in ("one", "two"):
        text = "from layers_shared import NAME\n\n\ndef model():\n    return NAME\n"
        write(tmp_path / name, "net.py", text)
        write(tmp_path / name, "layers_shared.py", f"NAME = {name!r}\n")
    answers = [load("net.py:model", tmp_path / name).call() for name in ("one", "two", "one")]
    assert answers == ["one", "two", "one"]


def test_a_file_runs_again_only_when_it_or_its_imports_changed(tmp_path: Path) -> None:
    body = "def model():\n    return layers_edited.WIDTH, SEEN\n"
    write(tmp_path, "net.py", f"import layers_edited\n\nSEEN = object()\n\n\n{body}")
    write(tmp_path, "layers_edited.py", "WIDTH = 1\n")
    first = load("net.py:model", tmp_path).call()
    assert load("net.py:model", tmp_path).call() == first
    write(tmp_path, "layers_edited.py", "WIDTH = 2\n")
    again = load("net.py:model", tmp_path).call()
    assert isinstance(again, tuple)
    assert again[0] == 2


def test_what_user_code_prints_does_not_reach_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "net.py", "print('loading')\n\n\ndef model():\n    print('making')\n")
    load("net.py:model", tmp_path).call()
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "loading\nmaking\n"


@pytest.mark.parametrize(
    ("text", "location", "parts"),
    [
        ("", "net.py", ["'net.py'", "file.py:name"]),
        ("", "other.py:model", ["other.py", "No such file"]),
        ("", "no_such_package.net:model", ["no module", "'no_such_package.net'"]),
        ("def build():\n    pass\n", "net.py:model", ["net.py", "'model'", "build"]),
        ("model = 3\n", "net.py:model", ["'model'", "int", "not callable"]),
        ("x = [1][5]\n", "net.py:model", ["IndexError", "net.py line 1", "x = [1][5]"]),
        ("def model(:\n", "net.py:model", ["SyntaxError", "net.py"]),
        ("import nothing_like_this\n", "net.py:model", ["nothing_like_this", "line 1"]),
        ("import sys\nsys.exit(3)\n", "net.py:model", ["SystemExit", "line 2"]),
        ("FILES = ('w.bin',)\nmodel = dict\n", "net.py:model", ["FILES", "'w.bin'"]),
        ("FILES = 'w.bin'\nmodel = dict\n", "net.py:model", ["FILES", "tuple"]),
    ],
)
def test_code_that_cannot_be_loaded_is_a_source_error(
    text: str, location: str, parts: list[str], tmp_path: Path
) -> None:
    write(tmp_path, "net.py", text)
    with pytest.raises(SourceError) as caught:
        load(location, tmp_path)
    for part in parts:
        assert part in str(caught.value)


def test_a_function_that_raises_is_told_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, "net.py", "def model():\n    raise ValueError('no weights')\n")
    user = load("net.py:model", tmp_path)
    with pytest.raises(
        SourceError, match=r"net\.py:model: raised ValueError: no weights .*line 2"
    ):
        user.call()
