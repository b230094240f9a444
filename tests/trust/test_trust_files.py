"""Files that decide about trust count only where nobody else could have written them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from trtbuild.errors import TrustError
from trtbuild.runtime import trust_files
from trtbuild.trust.lockfile import MAX_LOCK_BYTES, read_lock
from trtbuild.trust.memory import Loaded, Memory
from trtbuild.trust.policy import read_policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOBODY = 65534
POLICY = 'schema = 1\nunsigned = "refuse"\n'
LOCK = "schema = 1\n"

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")

Read = tuple[str, "Callable[[Path], object]"]
POLICY_AND_LOCK: tuple[Read, ...] = (
    ("T01", lambda path: trust_files.load_policy(str(path))),
    ("T02", trust_files.load_lock),
)


@pytest.fixture(params=POLICY_AND_LOCK, ids=["policy", "lock"])
def reads(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Callable[[], object]]:
    """A good file ``own/file`` of the kind, the code of its refusals, and what reads it."""
    code, read = request.param
    (tmp_path / "own").mkdir(mode=0o755)
    (tmp_path / "own" / "file").write_text(POLICY if code == "T01" else LOCK)
    return code, lambda: read(tmp_path / "own" / "file")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own"


def refused(reads: tuple[str, Callable[[], object]], words: str) -> None:
    code, read = reads
    started = time.monotonic()
    with pytest.raises(TrustError, match=words) as caught:
        read()
    assert caught.value.code == code
    assert time.monotonic() - started < 10


def test_a_file_as_version_control_makes_it_is_read(
    reads: tuple[str, Callable[[], object]], own: Path
) -> None:
    (own / "file").chmod(0o644)
    reads[1]()


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_may_write_to_is_refused(
    mode: int, reads: tuple[str, Callable[[], object]], own: Path
) -> None:
    (own / "file").chmod(mode)
    refused(reads, r"other users may write to it \(chmod go-w .*/own/file\)")


@root_only
def test_a_file_of_another_user_is_refused(
    reads: tuple[str, Callable[[], object]], own: Path
) -> None:
    os.chown(own / "file", NOBODY, NOBODY)
    refused(reads, "belongs to user 65534")


def test_a_pipe_does_not_make_a_load_wait(
    reads: tuple[str, Callable[[], object]], own: Path
) -> None:
    (own / "file").unlink()
    os.mkfifo(own / "file")
    refused(reads, "not a regular file")


def test_a_file_beyond_every_size_is_refused(
    reads: tuple[str, Callable[[], object]], own: Path
) -> None:
    with (own / "file").open("a") as file:
        file.truncate(MAX_LOCK_BYTES + 1)
    refused(reads, f"more than {MAX_LOCK_BYTES} bytes")


def test_a_folder_that_others_may_write_to_is_refused(
    reads: tuple[str, Callable[[], object]], own: Path
) -> None:
    own.chmod(0o777)
    refused(reads, r"its folder \(chmod go-w .*/own\)")
    own.chmod(0o1777)  # in a sticky one nobody can replace what is ours
    reads[1]()


@root_only
def test_a_folder_of_another_user_is_refused(
    reads: tuple[str, Callable[[], object]], own: Path
) -> None:
    os.chown(own, NOBODY, NOBODY)
    refused(reads, "own belongs to user 65534")


def test_a_folder_that_everybody_may_write_to_counts_where_it_is_mounted_read_only(
    reads: tuple[str, Callable[[], object]], own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Volumes of settings in a cluster have mode 0777 and are read-only."""
    own.chmod(0o777)

    def fstatvfs(_: int) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 1, 1, 1, 1, 1, 1, os.ST_RDONLY, 255))

    monkeypatch.setattr(os, "fstatvfs", fstatvfs)
    reads[1]()


def as_in_a_cluster(own: Path) -> Path:
    """Move the file as a cluster has settings: file -> ..data/file, ..data -> ..version."""
    (own / "..version").mkdir(mode=0o755)
    (own / "file").rename(own / "..version" / "file")
    (own / "..data").symlink_to("..version")
    (own / "file").symlink_to("..data/file")
    return own / "..version"


def test_links_to_a_file_as_good_as_itself_are_followed(
    reads: tuple[str, Callable[[], object]], own: Path
) -> None:
    as_in_a_cluster(own)
    reads[1]()


def test_the_target_of_a_link_obeys_the_same_rules(
    reads: tuple[str, Callable[[], object]], own: Path
) -> None:
    version = as_in_a_cluster(own)
    version.chmod(0o777)
    refused(reads, "other users may write to its folder")
    version.chmod(0o755)
    (version / "file").chmod(0o666)
    refused(reads, "other users may write to it")
    (version / "file").chmod(0o644)
    own.chmod(0o777)  # where the link itself is
    refused(reads, "other users may write to its folder")


@root_only
def test_a_link_of_another_user_in_a_sticky_folder_is_refused(
    reads: tuple[str, Callable[[], object]], own: Path
) -> None:
    as_in_a_cluster(own)
    own.chmod(0o1777)
    os.lchown(own / "file", NOBODY, NOBODY)
    refused(reads, "belongs to user 65534")


def test_links_in_a_circle_are_refused(
    reads: tuple[str, Callable[[], object]], own: Path
) -> None:
    (own / "file").unlink()
    (own / "file").symlink_to("file")
    refused(reads, "behind more than 8 links")


DEEP = (
    f"a = {'[' * 100_000}{']' * 100_000}\n",
    f"a = {'{b=' * 50_000}1{'}' * 50_000}\n",
    f"{'a.' * 100_000}a = 1\n",
    f"[{'a . ' * 50_000}a]\n",
    f"a = [\n{'[ # x' + chr(10)} " * 1000,
)


@pytest.mark.parametrize("read", [read_policy, read_lock])
@pytest.mark.parametrize("text", DEEP, ids=range(len(DEEP)))
def test_deep_nesting_is_refused_and_no_crash(
    text: str, read: Callable[[bytes, str], object]
) -> None:
    started = time.monotonic()
    with pytest.raises(TrustError, match="nested deeper than 16 levels"):
        read(text.encode() + LOCK.encode(), "x")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "text",
    [
        '"""' + '\\"""' * 200_000,
        "'''" + "''\n" * 200_000,
        '"\\' * 300_000,
        "'" * 999_999,
        "#" * 1_000_000,
        '"""\\',
    ],
    ids=range(6),
)
def test_looking_at_nesting_takes_time_in_proportion(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(TrustError):
        read_lock(text.encode(), "x")
    assert time.monotonic() - started < 5


def test_brackets_and_dots_in_text_are_no_nesting() -> None:
    words = "[" * 40 + "." * 40
    texts = (f'"{words}\\"{words}"', f"'{words}'", f'"""{words}""{words}"""', f"'''{words}'''")
    rule = f'[[models]]\nnames = ["a"] # {words}\nbuilder_ids = [{", ".join(texts)}]\n'
    policy = read_policy(f"# {words}\n{POLICY}{rule}".encode(), "x")
    assert len(policy.models[0].builder_ids) == len(texts)


LOADED, LATER = (Loaded(seq=seq, keys=("a" * 64,)) for seq in (7, 8))


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(trust_files.STATE_VARIABLE, str(tmp_path / "state"))
    trust_files.remember("m/t", LOADED, ())
    return tmp_path / "state"


def test_a_memory_in_a_folder_that_others_may_write_to_is_refused(state: Path) -> None:
    assert trust_files.load_memory() == Memory(releases={"m/t": LOADED})
    state.chmod(0o777)
    for attempt in (trust_files.load_memory, lambda: trust_files.remember("m/t", LATER, ())):
        with pytest.raises(TrustError, match="other users may write to its folder") as caught:
            attempt()
        assert caught.value.code == "T18"


def test_a_memory_that_was_moved_away_for_a_link_is_no_empty_one(state: Path) -> None:
    (state / "releases.json").rename(state / "gone")
    for target in ("nowhere", "gone"):
        (state / "releases.json").symlink_to(target)
        with pytest.raises(TrustError, match="T18"):
            trust_files.load_memory()
        (state / "releases.json").unlink()


def test_a_mark_counts_where_nobody_else_could_make_it(state: Path) -> None:
    mark = state / "canary" / "name"
    assert not trust_files.is_marked(mark)
    trust_files.mark(mark)
    assert trust_files.is_marked(mark)
    for path, mode in ((state, 0o777), (mark.parent, 0o777), (mark, 0o666)):
        before = path.stat().st_mode
        path.chmod(mode)
        assert not trust_files.is_marked(mark), path
        path.chmod(before)
    assert trust_files.is_marked(mark)
    mark.rename(mark.with_name("other"))
    mark.symlink_to("other")
    assert not trust_files.is_marked(mark)


@root_only
def test_a_mark_of_another_user_does_not_count(state: Path) -> None:
    mark = state / "canary" / "name"
    trust_files.mark(mark)
    os.chown(mark, NOBODY, NOBODY)
    assert not trust_files.is_marked(mark)


def test_no_mark_is_made_in_a_folder_that_others_may_write_to(state: Path) -> None:
    state.chmod(0o777)
    with pytest.raises(OSError, match="other users"):
        trust_files.mark(state / "canary" / "name")
    assert not (state / "canary").exists()
