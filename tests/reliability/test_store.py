"""The store under load, damage, power cuts and failing disks."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.reliability import power, soak
from tests.reliability.shim import shimmed
from tests.store.engines import engine_key
from tests.store.test_lease import run_processes
from trtbuild.canonical import digest
from trtbuild.engine import MANIFEST_SCHEMA, Manifest
from trtbuild.errors import StoreError
from trtbuild.runtime.admission import candidate_of
from trtbuild.store import BlobLostError, Store, make_record
from trtbuild.store.audit import audit
from trtbuild.store.pins import pin, pins
from trtbuild.store.resolve import find_engine

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
nightly = pytest.mark.nightly


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def quiet(_: str) -> None:
    """Say nothing."""


@nightly
def test_64_processes_make_a_key_once_in_each_of_100_rounds(tmp_path: Path) -> None:
    """C1."""
    answer = run_processes("stampede", tmp_path / "store", 64, 100, "locks")
    assert (answer["failed"], len(answer["builds"])) == (0, 100)
    assert len({(key, data) for key, data, _ in answer["seen"]}) == 100


@nightly
def test_2000_kills_damage_nothing(tmp_path: Path) -> None:
    """D1."""
    answer = run_processes("killed", tmp_path / "store", 2000)
    assert (answer["bad"], answer["lost"], answer["left"]) == (0, 0, [])


@pytest.mark.parametrize("flips", [300, pytest.param(10_000, marks=nightly)])
def test_no_flipped_bit_is_served(store: Store, flips: int) -> None:
    """I1: in blobs and in records."""
    blob = store.put_bytes("engine", os.urandom(4096))
    key = digest("t", 1)
    store.put(make_record("engine", key, {"of": "it"}, {"a": 1}, (blob,)))
    record = store.top / "ac" / "engine" / key[:2] / key
    draw = random.Random(1)  # noqa: S311  no secret
    for path in (store.path(blob.sha256), record):
        data = path.read_bytes()
        for _ in range(flips):
            place = draw.randrange(8 * len(data))
            flipped = bytearray(data)
            flipped[place // 8] ^= 1 << place % 8
            path.unlink(missing_ok=True)
            path.write_bytes(flipped)
            if path == record:
                assert store.get("engine", key) is None
            else:
                with pytest.raises(BlobLostError):
                    store.read(blob.sha256)
        path.write_bytes(data)
    assert store.get("engine", key)


@pytest.mark.parametrize("rounds", [500, pytest.param(10_000, marks=nightly)])
def test_a_file_that_is_swapped_while_it_is_read_is_never_served(
    store: Store, rounds: int
) -> None:
    """I4: whatever the moment, a reader has the right bytes or none."""
    good = b"g" * 100_000
    sha256 = store.put_bytes("engine", good).sha256
    path = store.path(sha256)
    done = threading.Event()

    def swap() -> None:
        for number in range(1 << 30):
            if done.is_set():
                return
            other = store.root / "other"
            other.write_bytes(good if number % 2 else b"b" * 100_000)
            other.replace(path)

    swapper = threading.Thread(target=swap)
    swapper.start()
    answers = [_read(store, sha256) for _ in range(rounds)]
    done.set()
    swapper.join()
    assert set(answers) == {good, None}


def _read(store: Store, sha256: str) -> bytes | None:
    try:
        return store.read(sha256)
    except BlobLostError:
        return None


CALLS = (
    *("write", "pwrite64", "fsync", "link", "linkat", "rename", "renameat", "renameat2"),
    *("unlink", "unlinkat", "mkdir", "fchmod", "utimensat", "ftruncate", "flock"),
    *("openat", "close"),
)
PUBLISH = """
import sys
from trtbuild.store import Store, make_record
from trtbuild.store.lease import get_or_make
store = Store.open(sys.argv[1])
def make():
    blob = store.put_bytes("engine", sys.argv[2].encode() * 1000)
    return make_record("engine", sys.argv[2], {}, {}, (blob,))
record, _ = get_or_make(store, "engine", sys.argv[2], make)
store.read(record.blobs[0].sha256)
"""


@nightly
def test_a_kill_before_any_system_call_that_changes_something_damages_nothing(
    tmp_path: Path,
) -> None:
    """D1: the n-th call of each kind does not happen, since the process is dead by then."""
    strace = shutil.which("strace")
    if not strace:
        pytest.skip("needs strace")
    trace = [strace, "-qq", "-o", str(tmp_path / "calls"), "-e", f"trace={','.join(CALLS)}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def publish(what: str, *inject: str, folder: str = "store") -> int:
        command = [sys.executable, "-c", PUBLISH, str(tmp_path / folder), digest("d1", what)]
        done = subprocess.run([*trace, *inject, *command], env=environment, check=False)
        return done.returncode

    assert publish("first", folder="another") == 0
    calls = [line.partition("(")[0] for line in (tmp_path / "calls").read_text().splitlines()]
    points = [(name, turn + 1) for name in CALLS for turn in range(calls.count(name))]
    assert len(points) > 15
    # Of what opens and closes, the last hundred: before, the interpreter reads its modules.
    reads = [point for point in points if point[0] in ("openat", "close")]
    points = [p for p in points if p not in reads or p[1] > calls.count(p[0]) - 100]
    for name, turn in points:
        # The first publish makes the store's folders too; one store sees every point later.
        for folder in (f"{name}{turn}", "store"):
            what = f"{folder} {name} {turn}"
            kill = ("-e", f"inject={name}:signal=KILL:when={turn}")
            first = publish(what, *kill, folder=folder)
            assert first != 0 or folder == "store"
            assert publish(what, folder=folder) == 0
            found = audit(Store.open(str(tmp_path / folder)), repair=False, say=quiet)
            assert found.faults == (), what
    print(f"{len(points)} points, each on a new store and on a used one")  # noqa: T201  the record of the run


def faults_at_every_call(root: Path) -> dict[str, int]:
    """Let each write, sync, link and close of a publish fail in turn, in this process."""
    shim = ctypes.CDLL(None)
    refused = points = 0
    for code in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE):
        for call in range(1, 100):
            store = Store.open(str(root))
            key = digest("t", [code, call])
            data = os.urandom(1000)
            shim.arm(call, code)
            try:
                blob = store.put_bytes("engine", data)
                store.put(make_record("engine", key, {}, {}, (blob,)))
            except StoreError:
                refused += 1
            if shim.arm(0, 0):
                break
            points += 1
            if store.get("engine", key):
                assert store.read(hashlib.sha256(data).hexdigest()) == data
            again = store.put_bytes("engine", os.urandom(1000))
            store.put(make_record("engine", key, {}, {}, (again,)))
    found = audit(Store.open(str(root)), repair=False, say=quiet)
    return {"points": points, "refused": refused, "faults": len(found.faults)}


def test_a_disk_that_fails_at_any_call_damages_nothing(tmp_path: Path) -> None:
    """D4."""
    program = (
        "import json, sys; from pathlib import Path; from tests.reliability import test_store;"
        "print(json.dumps(test_store.faults_at_every_call(Path(sys.argv[1]))))"
    )
    environment = shimmed(tmp_path, PYTHONPATH=str(ROOT))
    command = [sys.executable, "-c", program, str(tmp_path / "store")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["points"] > 50
    assert answer["refused"] >= answer["points"] // 2
    assert answer["faults"] == 0


@pytest.mark.parametrize("system", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("trials", [2, pytest.param(50, marks=nightly)])
@pytest.mark.parametrize("fsync", ["synced", "nothing"])
def test_an_acknowledged_publish_survives_a_power_cut(
    system: str, trials: int, fsync: str, tmp_path: Path
) -> None:
    """D2, and D3 with fsync doing nothing: what is lost then is a miss and never served."""
    if os.geteuid() or not shutil.which(f"mkfs.{system}"):
        pytest.skip(f"needs root and mkfs.{system}")
    if not power.can_mount(system, tmp_path):
        pytest.skip(f"cannot mount {system} on a loop device here")
    found = [power.trial(system, tmp_path / str(turn), fsync) for turn in range(trials)]
    assert sum(each["acknowledged"] for each in found) >= trials
    assert sum(each["served_wrong"] for each in found) == 0
    if fsync == "synced":
        assert sum(each["lost"] for each in found) == 0
    else:
        assert sum(each["lost"] for each in found) > 0, "this showed nothing"


@pytest.mark.parametrize("schema", [1, MANIFEST_SCHEMA])
def test_a_store_of_every_schema_is_read(schema: int, tmp_path: Path) -> None:
    """V1: the first was written by version 0.1.0; each schema of a manifest has such a file."""
    root = tmp_path / "store"
    for name, text in json.loads((HERE / f"store-v{schema}.json").read_text()).items():
        (root / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (root / name).write_text(text)
    root.chmod(0o700)
    store = Store.open(str(root))
    (record,) = store.records("engine")
    sha256 = record.blobs[0].sha256
    assert record.key == engine_key("sm_89", 3).digest
    for name in (record.key, sha256, sha256[:8]):
        assert find_engine(store, name) == record
    assert store.get("engine", record.key, Manifest) == record
    manifest = record.read(Manifest)
    assert (manifest.schema, manifest.sha256, manifest.refit_of) == (schema, sha256, "")
    assert manifest.preimage.digest == record.key
    pin(store, record, "release")
    assert pins(store)["pins/release"].sha256 == sha256
    assert candidate_of(record).sha256 == sha256
    shown = subprocess.run(
        [sys.executable, "-m", "trtbuild", "inspect", sha256, "--store", str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "tensorrt-rtx:sm_89" in shown.stdout
    assert audit(store, repair=False, say=quiet).sound


SOAK_FAULTS = ("damage", "quarantine_race", "lock_loss", "disk_fault", "kill", "collection")


@pytest.mark.parametrize(
    ("processes", "seconds"),
    [
        (2, 4.0),
        pytest.param(8, float(os.environ.get("TRTBUILD_SOAK_S", "3600")), marks=nightly),
    ],
)
def test_a_soak_leaks_nothing_and_serves_nothing_wrong(
    store: Store, tmp_path: Path, processes: int, seconds: float
) -> None:
    """R1: TRTBUILD_SOAK_S says how long the long form takes, an hour by default."""
    environment = shimmed(tmp_path, PYTHONPATH=str(ROOT))
    command = [sys.executable, str(HERE / "soak.py"), str(store.root), str(seconds)]
    begun = time.monotonic()
    running = [
        subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, env=environment)
        for n in range(processes)
    ]
    answers = [json.loads(process.communicate()[0]) for process in running]
    assert time.monotonic() - begun >= seconds
    total: Counter[str] = Counter()
    for answer in answers:
        print(answer)  # noqa: T201  the record of the run
        total.update({name: n for name, n in answer.items() if isinstance(n, int)})
    assert (total["wrong"], total["unexpected"], total["grown_files"]) == (0, 0, 0)
    assert total["refused"] <= total["rounds"] * 0.01
    assert total["hits"] >= total["rounds"] * 0.8
    assert all(total[fault] for fault in SOAK_FAULTS) or seconds < 60
    # What less than an hour grows by says nothing of the slope.
    growth = "mib_per_hour" if seconds >= 3600 else "grown_mib"
    assert seconds < 60 or all(answer[growth] < 1.0 for answer in answers)
    soak.check_all(store)
    audit(store, repair=True, say=quiet)
    assert audit(store, repair=False, say=quiet).sound
