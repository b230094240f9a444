"""The store's figures: lookups, verified loads, a stampede, a collection of many entries, and
lookups beside it.

    .venv/bin/python -m tests.benchmarks.store [ENTRIES]

Everything runs in a temporary folder of this machine's file system (TMPDIR chooses it).
"""

from __future__ import annotations

import hashlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.reliability.filling import fill, key_of
from trtbuild.store import Store
from trtbuild.store.collect import Limits, collect

ENTRIES = 100_000
ROUNDS = 7
BLOB_BYTES = 256 << 20
PROCESSES = 64
START = "import sys; from trtbuild.store import Store;"
BESIDE = f"""{START}
import time
store, keys, times = Store.open(sys.argv[1]), sys.argv[2:], []
print("ready", flush=True)
end = time.monotonic() + 3600
while time.monotonic() < end and not (store.root / "over").exists():
    for key in keys:
        started = time.perf_counter()
        store.get("ranges", key)
        times.append((time.perf_counter() - started) * 1000)
    time.sleep(0.001)
times.sort()
print(len(times), times[len(times) // 2], times[int(len(times) * 0.999)], times[-1])
"""
HIT = f"{START} assert Store.open(sys.argv[1]).get('ranges', sys.argv[2])"


def lookups(store: Store, entries: int) -> None:
    """Print how long a hit takes in this process, at random keys and at warmed-up ones."""
    draw = random.Random(1)  # noqa: S311  no secret
    for what, keys in (
        ("cold key", [key_of(draw.randrange(entries)) for _ in range(5000)]),
        ("warm key", [key_of(number) for number in range(50)] * 100),
    ):
        times = []
        for key in keys:
            started = time.perf_counter()
            record = store.get("ranges", key)
            times.append((time.perf_counter() - started) * 1000)
            assert record
        cuts = statistics.quantiles(times, n=100)
        print(f"lookup, {what}: p50 {cuts[49]:.3f} ms, p99 {cuts[98]:.3f} ms")


def verified_load(store: Store) -> None:
    """Print the speed of reading and hashing a blob, over that of hashing alone."""
    data = os.urandom(1 << 20) * (BLOB_BYTES >> 20)
    blob = store.put_bytes("engine", data)
    ratios, speeds = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        hashlib.sha256(data)
        middle = time.perf_counter()
        store.read(blob.sha256)
        ended = time.perf_counter()
        ratios.append((middle - started) / (ended - middle))
        speeds.append(BLOB_BYTES / (ended - middle) / 1e9)
    print(
        f"verified load: {statistics.median(speeds):.2f} GB/s, over one core's sha256 "
        f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    )


def stampede(store: Store) -> None:
    """Print how long 64 processes take that all hit one key, against the same without."""
    results = []
    for program in (START, HIT):
        command = [sys.executable, "-c", program, str(store.root), key_of(1)]
        started = time.perf_counter()
        running = [subprocess.Popen(command) for _ in range(PROCESSES)]
        assert [process.wait() for process in running] == [0] * PROCESSES
        results.append(time.perf_counter() - started)
    print(
        f"stampede: {PROCESSES} processes that hit {results[1]:.2f} s, that only import it "
        f"{results[0]:.2f} s"
    )


def collection(store: Store) -> None:
    """Print how long it takes to collect half of all entries."""
    size = collect(store, Limits(high_bytes=1 << 60, low_bytes=1 << 60)).before_bytes
    keys = [key_of(number) for number in range(0, 50_000, 5000)]
    command = [sys.executable, "-c", BESIDE, str(store.root), *keys]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        started, used = time.perf_counter(), time.process_time()
        found = collect(store, Limits(high_bytes=size - 1, low_bytes=size // 2))
        seconds, used = time.perf_counter() - started, time.process_time() - used
        (store.root / "over").touch()
        count, *waits = reader.stdout.readline().split()
    print(
        f"collection: {found.records} records of a store of {size / 1e6:.0f} MB in "
        f"{seconds:.1f} s, {used:.1f} s of processor"
    )
    middle, rare, longest = map(float, waits)
    print(
        f"lookups beside it, in another process: {count}, p50 {middle:.3f} ms, p99.9 "
        f"{rare:.2f} ms, longest {longest:.1f} ms"
    )


def main() -> None:
    """Measure all, on a store of as many entries as the command line says."""
    entries = int(sys.argv[1]) if len(sys.argv) > 1 else ENTRIES
    print(f"{entries} entries, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(str(Path(folder) / "store"))
        fill(store, entries)
        lookups(store, entries)
        stampede(store)
        collection(store)
        verified_load(store)


if __name__ == "__main__":
    main()
