"""The figures of single paths through the store: keys, cold loads, memory, waiting, a miss.

    .venv/bin/python -m tests.benchmarks.store_paths [MIB]

``MIB`` is the size of the model and of the engine (1024). All in a temporary folder of this
machine's file system (TMPDIR chooses it).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import onnx
from onnx import TensorProto, helper

import trtbuild
from tests.pipeline import models
from trtbuild.canonical import digest
from trtbuild.graph.model import read_graph
from trtbuild.pipeline.file_digests import file_digest
from trtbuild.recipe import Gates
from trtbuild.runtime import trust_files
from trtbuild.store import Store, make_record
from trtbuild.store.lease import flight, get_or_make

if TYPE_CHECKING:
    from trtbuild.store import Record

ROUNDS = 5
WAKES = 40
SETTLED_S = 2.1
"""A file that changed later than that is not remembered."""
LOAD = """
import sys
from trtbuild.store import Store
def highest():
    lines = open("/proc/self/status").read().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("VmHWM"))
store = Store.open(sys.argv[1])
before = highest()
data = store.read(sys.argv[2])
print(before, highest(), len(data))
"""
SESSION = """
import sys, time
started = time.perf_counter()
import trtbuild
trtbuild.load(sys.argv[1], sys.argv[2], policy=sys.argv[3]).close()
print(time.perf_counter() - started)
"""
POLICY = 'schema = 1\nunsigned = "local"\ncanary = {}\n'


def seconds(started: float) -> float:
    return time.perf_counter() - started


def keys(folder: Path, store: Store, mib: int) -> None:
    """Print how long the digest of a model takes, over hashing its weights alone; and again."""
    data = os.urandom(1 << 20) * mib
    (folder / "weights").write_bytes(data)
    node = helper.make_node("Add", ["x", "w"], ["y"])
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[mib << 18])
    weight.data_location = TensorProto.EXTERNAL
    for name, value in (("location", "weights"), ("length", str(mib << 20))):
        weight.external_data.add(key=name, value=value)
    put = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy"]
    graph = helper.make_graph([node], "g", put[:1], put[1:], [weight])
    onnx.save(helper.make_model(graph), folder / "big.onnx")
    time.sleep(SETTLED_S)
    file_digest(store, str(folder / "weights"))
    hashed, cold, again = [], [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        hashlib.sha256(data)
        hashed.append(seconds(started))
        started = time.perf_counter()
        read_graph(folder / "big.onnx")
        cold.append(seconds(started))
        started = time.perf_counter()
        file_digest(store, str(folder / "weights"))
        again.append(seconds(started))
    ratios = [a / b for a, b in zip(cold, hashed, strict=True)]
    print(
        f"key of a model of {mib} MiB: {statistics.median(cold):.2f} s, over sha256 alone "
        f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]; again for a "
        f"full hit {statistics.median(again) * 1e3:.2f} ms [{min(again) * 1e3:.2f}, "
        f"{max(again) * 1e3:.2f}]"
    )


def forget(path: Path) -> None:
    """Drop a file's pages from the page cache."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def cold_load(store: Store, mib: int) -> None:
    """Print the speed of a verified load from disk, over that of dd, and its memory."""
    blob = store.put_bytes("engine", os.urandom(1 << 20) * mib)
    path = store.path(blob.sha256)
    ratios, speeds, bounds = [], [], []
    for _ in range(ROUNDS):
        data = store.read(blob.sha256)
        started = time.perf_counter()
        hashlib.sha256(data)
        hashed = seconds(started)
        forget(path)
        started = time.perf_counter()
        subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"], check=True)
        plain = seconds(started)
        forget(path)
        started = time.perf_counter()
        store.read(blob.sha256)
        ours = seconds(started)
        ratios.append(plain / ours)
        bounds.append(max(plain, hashed) / ours)
        speeds.append(blob.bytes / ours / 1e9)
    print(
        f"cold verified load of {mib} MiB: {statistics.median(speeds):.2f} GB/s, over dd "
        f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}], over the "
        f"slower of dd and sha256 {statistics.median(bounds):.2f} [{min(bounds):.2f}, "
        f"{max(bounds):.2f}]"
    )
    command = [sys.executable, "-c", LOAD, str(store.root), blob.sha256]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after, size = map(int, done.stdout.split())
    more = (after - before) / 1024 - size / 2**20
    print(f"memory of a load: the engine's {size >> 20} MiB and {more:.1f} MiB")
    before_bytes = used_bytes(store)
    store.put_bytes("engine", store.read(blob.sha256))
    print(f"the same bytes once more: {used_bytes(store) - before_bytes} bytes more")


def used_bytes(store: Store) -> int:
    return sum(each.lstat().st_blocks * 512 for each in (store.top / "cas").rglob("*"))


def waiting(store: Store) -> None:
    """Print how long after a publish who waits for it has the record."""
    waited = []
    for number in range(WAKES):
        key = digest("wake", number)
        woke: list[float] = []

        def wait(key: str = key, woke: list[float] = woke) -> None:
            get_or_make(store, "ranges", key, lambda: make_record("ranges", key, {}, 0))
            woke.append(time.perf_counter())

        with flight(store, "ranges", key):
            waiter = threading.Thread(target=wait)
            waiter.start()
            time.sleep(0.2 + 0.0025 * number)
            store.put(make_record("ranges", key, {}, 1))
            published = time.perf_counter()
            waiter.join()
        waited.append(1000 * (woke[0] - published))
    print(f"waiters: median {statistics.median(waited):.0f} ms, longest {max(waited):.0f} ms")


def miss(folder: Path, store: Store) -> None:
    """Print what a miss costs beside the build, of a made one and of a real one."""
    data = os.urandom(64 << 20)

    def make() -> Record:
        time.sleep(2.0)
        return make_record("engine", key, {}, {}, (store.put_bytes("engine", data),))

    key = digest("miss", 1)
    started = time.perf_counter()
    get_or_make(store, "engine", key, make)
    print(f"a miss whose build takes 2 s and leaves 64 MiB: {seconds(started) - 2:.2f} s more")
    recipe = models.recipe(folder, "onnxruntime")
    recipe = models.with_quantization(recipe, precision="fp32", provider=None)
    recipe = msgspec.structs.replace(recipe, gates=Gates())
    report = trtbuild.build(recipe, folder / "built")
    built = next(stage for stage in report.stages if stage.name.startswith("build "))
    known = Store.open(str(folder / "built"))
    (record,) = known.records("engine")
    took = msgspec.json.decode(record.value)["build_seconds"]
    print(
        f"a real one, of ONNX Runtime: built in {took:.2f} s, {built.seconds - took:.2f} s more"
    )
    canary(folder, report.engines[0].sha256)


def canary(folder: Path, sha256: str) -> None:
    """Print how long a process takes to load an engine, without and with the trial load."""
    found = {}
    for on in ("false", "true"):
        policy = folder / f"policy-{on}.toml"
        policy.write_text(POLICY.format(on))
        policy.chmod(0o600)
        times = []
        for number in range(ROUNDS):
            state = folder / f"state-{on}-{number}"
            state.mkdir(mode=0o700)
            shutil.copytree(trust_files.state_folder() / "made", state / "made")
            done = subprocess.run(
                [sys.executable, "-c", SESSION, sha256, str(folder / "built"), str(policy)],
                env={**os.environ, "TRTBUILD_STATE": str(state)},
                capture_output=True,
                text=True,
                check=True,
            )
            times.append(float(done.stdout))
        found[on] = statistics.median(times)
    print(
        f"first load with a trial in a child {found['true']:.2f} s, without "
        f"{found['false']:.2f} s: {found['true'] / found['false']:.2f} x"
    )


def main() -> None:
    """Measure all, with a model and an engine of as many MiB as the command line says."""
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ[trust_files.STATE_VARIABLE] = str(Path(folder) / "state")
        store = Store.open(str(Path(folder) / "store"))
        waiting(store)
        miss(Path(folder), store)
        keys(Path(folder), store, mib)
        cold_load(store, mib)


if __name__ == "__main__":
    main()
