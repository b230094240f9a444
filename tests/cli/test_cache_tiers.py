"""``trtbuild cache push, pull, export, import`` as a user runs them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.store.engines import engine_key, put_engine
from trtbuild.store import Store, make_record
from trtbuild.store.resolve import Plan
from trtbuild.store.statements import put_statement

ROOT = Path(__file__).parents[2]
PROGRAM = "from trtbuild.cli import main; main()"


def run(*arguments: object, offline: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if offline:
        environment["TRTBUILD_OFFLINE"] = "1"
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "cache", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.open(str(tmp_path / "store"))
    put_engine(made, engine_key("sm_89", 3), b"engine" * 100)
    return made


def test_push_and_pull_move_an_engine_and_skip_what_is_there(
    store: Store, tmp_path: Path
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    sha256 = store.keys("plan", "")[0]
    first = run("push", sha256[:12], "--unsigned", "--to", share, "--store", store.root)
    assert first.returncode == 0, first.stderr
    assert "3 objects" in first.stdout
    again = run(
        "push", "--all", "--unsigned", "--to", share, "--store", store.root, "--json", "--quiet"
    )
    document = json.loads(again.stdout)
    assert (document["objects_sent"], document["objects_present"]) == (0, 3)
    listed = run("ls", "--from", share, "--store", store.root, "--json")
    assert [each["sha256"] for each in json.loads(listed.stdout)["engines"]] == [sha256]
    pulled = run("pull", sha256[:8], "--from", share, "--store", tmp_path / "b", "--json")
    assert pulled.returncode == 0, pulled.stderr
    assert Path(json.loads(pulled.stdout)["path"]).read_bytes() == b"engine" * 100


def test_a_tier_that_names_another_engine_for_a_digest_gives_none(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "share").mkdir()
    asked, engine = "a" * 64, store.keys("engine", "")[0]
    store.put(make_record("plan", asked, {}, Plan(engine_key=engine)))
    assert (
        run(
            *("push", "--all", "--unsigned"),
            *("--to", tmp_path / "share", "--store", store.root),
        ).returncode
        == 0
    )
    pulled = run("pull", asked, "--from", tmp_path / "share", "--store", tmp_path / "b")
    assert pulled.returncode == 6
    assert "which is of other bytes" in pulled.stderr
    assert Store.open(str(tmp_path / "b")).keys("engine", "") == []


def test_export_and_import_move_an_engine_in_one_file(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "out" / "engines.tar"
    done = run("export", "--all", "--out", file, "--store", store.root, offline=True)
    assert done.returncode == 0, done.stderr
    done = run("import", file, "--store", tmp_path / "b", "--json", "--offline")
    assert done.returncode == 0, done.stderr
    kinds = [record["kind"] for record in json.loads(done.stdout)["records"]]
    assert kinds == ["engine", "plan"]
    assert Store.open(str(tmp_path / "b")).read(store.keys("plan", "")[0]) == b"engine" * 100


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["push", "--to", "/nowhere/share"], 2, "name engines"),
        (["push", "--all", "--unsigned", "--to", "/nowhere/share"], 6, "no such folder"),
        (["push", "--all", "--unsigned", "--to", "/dev/null"], 6, "not a folder"),
        (["push", "--all", "--to", "file:///"], 2, "push them with --unsigned"),
        (["push", "--all", "--to", "ftp://host/x"], 2, "no tier is called"),
        (["push", "--all", "--to", "s3://b/x", "--offline"], 2, "needs the network"),
        (["pull", "abc", "--from", "/nowhere"], 2, "6 or more digits"),
        (["import", "/nowhere/file.tar"], 2, "no archive"),
        (["ls", "--from", "/nowhere/share"], 6, "no such folder"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_exit_code(
    store: Store, arguments: list[str], code: int, said: str
) -> None:
    done = run(*arguments, "--store", store.root)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_all_leaves_out_what_nobody_signed_and_says_so(store: Store, tmp_path: Path) -> None:
    signed = put_engine(store, engine_key("sm_89", 4), b"signed")
    put_statement(store, signed.blobs[0].sha256, b"statement")
    (tmp_path / "signed").mkdir()
    share = f"file://{tmp_path / 'signed'}"
    done = run("push", "--all", "--to", share, "--store", store.root)
    assert done.returncode == 0, done.stderr
    assert "left out: 1 engine that nobody signed" in done.stderr
    there = [path.name for path in (tmp_path / "signed" / "v1" / "ac").glob("[ep]*/*/*")]
    assert sorted(there) == sorted((signed.key, signed.blobs[0].sha256))


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A share with another build of the key that ``store`` has, from another host."""
    other = Store.open(str(tmp_path / "other"))
    put_engine(other, engine_key("sm_89", 3), b"theirs")
    (tmp_path / "share").mkdir()
    done = run("push", "--all", "--unsigned", "--to", tmp_path / "share", "--store", other.root)
    assert done.returncode == 0, done.stderr
    return tmp_path / "share"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


THEIRS = hashlib.sha256(b"theirs").hexdigest()


def test_a_second_build_of_a_key_is_not_pushed_and_nothing_of_it(
    store: Store, share: Path
) -> None:
    before = names(share)
    put_statement(store, store.keys("plan", "")[0], b"statement")
    more = put_engine(store, engine_key("sm_89", 4), b"more")
    done = run("push", "--all", "--unsigned", "--to", share, "--store", store.root)
    assert done.returncode == 6
    assert f"has another build of engine {store.keys('plan', '')[1][:12]}" in done.stderr
    assert f"cache pull {THEIRS} --from" in done.stderr
    assert "pushed 2 records" in done.stdout
    assert names(share) - before == {more.key, more.blobs[0].sha256}


def test_a_build_that_is_asked_for_takes_the_place_of_ours(store: Store, share: Path) -> None:
    ours = store.keys("plan", "")[0]
    for _ in range(2):
        done = run("pull", THEIRS[:8], "--from", share, "--store", store.root, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["sha256"] == THEIRS
    assert store.keys("plan", "") == [THEIRS]
    assert store.read(THEIRS) == b"theirs"
    assert run("verify", "--store", store.root).returncode == 0
    assert run("show", THEIRS, "--store", store.root).returncode == 0
    assert run("show", ours, "--store", store.root).returncode == 2


@pytest.mark.usefixtures("share")
def test_an_archive_brings_its_own_build_too(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "other.tar"
    run("export", "--all", "--out", file, "--store", tmp_path / "other")
    done = run("import", file, "--store", store.root)
    assert done.returncode == 0, done.stderr
    assert f"engine {THEIRS[:12]} of 20" in done.stderr
    assert "takes the place of" in done.stderr
    assert THEIRS in done.stdout
    assert store.keys("plan", "") == [THEIRS]


def test_a_lost_blob_that_was_pulled_again_is_not_warned_of(
    tmp_path: Path, share: Path
) -> None:
    other = Store.open(str(tmp_path / "other"))
    other.path(THEIRS).unlink()
    done = run("pull", THEIRS, "--from", share, "--store", other.root)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert other.read(THEIRS) == b"theirs"


def test_a_pinned_build_gives_way_to_none(store: Store, share: Path) -> None:
    ours = store.keys("plan", "")[0]
    run("pin", ours, "--name", "prod/model", "--store", store.root)
    done = run("pull", THEIRS, "--from", share, "--store", store.root)
    assert done.returncode == 2
    assert "trtbuild cache unpin prod/model" in done.stderr
    assert store.keys("plan", "") == [ours]
