from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.store.engines import engine_key, put_engine
from trtbuild.store import Store, make_record

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; sys.argv.insert(1, 'cache'); from trtbuild.cli import main; main()"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def cache(store: Store, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments, "--store", str(store.root)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def document(store: Store, *arguments: str) -> Any:  # noqa: ANN401  decoded JSON
    done = cache(store, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_ls_lists_the_engines(store: Store) -> None:
    assert "no engines" in cache(store, "ls").stdout
    records = [
        put_engine(store, engine_key("sm_89", 3), bytes(1_200_000)),
        put_engine(store, engine_key("sm_120", 3), b"small"),
    ]
    lines = cache(store, "ls").stdout.splitlines()
    assert lines[0].split() == [
        *("KEY", "ENGINE", "MODEL"),
        *("TARGET", "PRECISION", "SIZE", "CREATED"),
    ]
    assert {tuple(line.split()[:-1]) for line in lines[1:]} == {
        (
            record.key[:12],
            record.blob("engine").sha256[:12],
            "?",  # its recipe is empty
            f"tensorrt-rtx:{arch}",
            "int8",
            *size,
        )
        for record, arch, size in zip(
            records, ("sm_89", "sm_120"), (("1.2", "MB"), ("5", "B")), strict=True
        )
    }
    engines = document(store, "ls")["engines"]
    assert {each["key"] for each in engines} == {record.key for record in records}
    assert {each["arch"] for each in engines} == {"sm_89", "sm_120"}
    assert engines[0]["precision_achieved"] == {"int8": 1}


def test_ls_lists_an_engine_of_another_version_and_warns_of_a_damaged_one(
    store: Store,
) -> None:
    store.put(make_record("engine", "a" * 64, {}, {"from": "the future"}))
    store.put(make_record("engine", "b" * 64, {}, {}))
    damaged = store.top / "ac" / "engine" / "bb" / ("b" * 64)
    damaged.chmod(0o600)
    damaged.write_bytes(b"damaged")
    done = cache(store, "ls")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].split()[:5] == ["a" * 12, "?", "?", "?", "?"]
    assert len(done.stdout.splitlines()) == 2
    assert f"warning: {damaged}: set aside in quarantine" in done.stderr


def test_show_prints_record_preimage_and_manifest(store: Store) -> None:
    record = put_engine(store, engine_key("sm_89", 3), b"plan")
    sha256 = record.blob("engine").sha256
    shown = document(store, "show", sha256[:8])
    assert shown["key"] == record.key
    assert shown["preimage"]["settings"] == [["optimization_level", 3], ["tf32", False]]
    assert shown["value"]["layers"]["layers"][0]["precision"] == "int8"
    assert shown["blobs"] == [
        {"name": "engine", "sha256": sha256, "bytes": 4, "path": str(store.path(sha256))}
    ]
    text = cache(store, "show", record.key).stdout
    assert text.startswith("kind     engine\n")
    for part in (str(store.path(sha256)), '"optimization_level"', '"precision_requested"'):
        assert part in text
    assert '"layers": 1,' in text
    assert "correlation" not in text, "of a real network they are thousands of lines"


def test_why_names_the_field_that_differs(store: Store) -> None:
    first = put_engine(store, engine_key("sm_89", 3), b"first")
    second = put_engine(store, engine_key("sm_89", 5), b"second")
    names = first.blob("engine").sha256[:7], second.key
    assert document(store, "why", *names)["differences"] == [
        {"field": "settings.optimization_level", "first": "3", "second": "5"}
    ]
    assert [line.split() for line in cache(store, "why", *names).stdout.splitlines()] == [
        ["FIELD", first.key[:12], second.key[:12]],
        ["settings.optimization_level", "3", "5"],
    ]
    same = cache(store, "why", first.key, names[0])
    assert same.stdout == f"same key: engine {first.key}\n"
    assert document(store, "why", first.key, names[0])["differences"] == []


def test_mistakes_are_one_line_and_exit_code_2(store: Store) -> None:
    engine = put_engine(store, engine_key("sm_89", 3), b"plan")
    ranges = store.put(make_record("ranges", "c" * 64, {}, {}))
    for arguments in (("show", "abcdef"), ("why", engine.key, ranges.key)):
        done = cache(store, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_a_store_that_must_not_be_trusted_is_exit_code_6(store: Store) -> None:
    store.root.chmod(0o777)
    done = cache(store, "ls")
    assert done.returncode == 6
    assert "chmod go-w" in done.stderr
    assert "Traceback" not in done.stderr
