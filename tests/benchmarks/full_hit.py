"""A full cache hit of the command against the bare interpreter, in turns.

    .venv/bin/python -m tests.benchmarks.full_hit engines/digits-int8.toml

The recipe is built first if it is not in the store. Then ``trtbuild engine RECIPE --json``
and ``python -c pass`` run in turns. Wall time, and processor time as the system counts it.
Python may keep its compiled modules, as it does for every installed program.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time

ROUNDS = 40
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}


def _measure(command: list[str]) -> tuple[float, float]:
    """Return wall and processor time of one run in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        env=ENVIRONMENT,
    )
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return wall * 1000, used * 1000


def main() -> None:
    """Measure the recipe named on the command line."""
    hit = [sys.executable, "-m", "trtbuild", "engine", sys.argv[1], "--json"]
    bare = [sys.executable, "-c", "pass"]
    for _ in range(2):  # what it takes to build, and to compile the modules of a hit
        subprocess.run(hit, stdout=subprocess.DEVNULL, check=True, env=ENVIRONMENT)
    rows = [(_measure(hit), _measure(bare)) for _ in range(ROUNDS)]
    for index, unit in enumerate(("wall", "processor")):
        ours = [hit_row[index] for hit_row, _ in rows]
        base = [bare_row[index] for _, bare_row in rows]
        ratios = sorted(a / b for a, b in zip(ours, base, strict=True))
        target = 3 * statistics.median(base) + 100
        print(
            f"{unit:9} hit median {statistics.median(ours):.0f} ms, bare interpreter "
            f"{statistics.median(base):.0f} ms, ratio {statistics.median(ratios):.1f} "
            f"[{ratios[1]:.1f}, {ratios[-2]:.1f}]; 3 x bare + 100 ms is {target:.0f} ms"
        )


if __name__ == "__main__":
    main()
