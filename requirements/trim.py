# ruff: noqa: INP001  (a script beside the locks, no package)
"""Keep in locks the hashes of files that we install: ``python requirements/trim.py LOCK...``.

These are wheels for CPython 3.10 to 3.13 on Linux, x86-64 and AArch64, and where none is for
all of them, source distributions. A lock of every file would be five times the size. Files
that the index does not know keep their hashes.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path

INDEX = "https://pypi.org/simple"
JSON = "application/vnd.pypi.simple.v1+json"
PIN = re.compile(r"([a-z0-9._-]+)==")
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
PYTHON = re.compile(r"(.*\.)?(cp31[0-3]|py3\d*)(\..*)?$")
STABLE = re.compile(r"cp3(\d+)$")
SOURCE = re.compile(r"\.(tar\.gz|zip)$")
NEWEST_MINOR = 13
PLATFORM = re.compile(r"any$|(many)?linux.*_(x86_64|aarch64)$")


def is_used(filename: str) -> bool:
    """Tell whether a file of the index is for a machine of ours."""
    if not filename.endswith(".whl"):
        return True
    python, abi, platform = filename.removesuffix(".whl").split("-")[-3:]
    stable = STABLE.match(python)
    runs = bool(abi == "abi3" and stable and int(stable[1]) <= NEWEST_MINOR)
    fits = any(PLATFORM.match(each) for each in platform.split("."))
    return fits and (runs or PYTHON.match(python) is not None)


def unused(name: str) -> set[str]:
    """Return the hashes of the files of a project that are for other machines."""
    url = f"{INDEX}/{name}/"
    request = urllib.request.Request(url, headers={"Accept": JSON})  # noqa: S310  https
    with urllib.request.urlopen(request) as answer:  # noqa: S310  https, see above
        files = json.load(answer)["files"]
    names = {file["filename"]: file["hashes"]["sha256"] for file in files}
    everywhere = {name.split("-")[1] for name in names if name.endswith("-py3-none-any.whl")}
    return {
        digest
        for name, digest in names.items()
        if not is_used(name) or SOURCE.sub("", name).rpartition("-")[2] in everywhere
    }


def trimmed(text: str, known: dict[str, set[str]]) -> str:
    """Return a lock without the hashes that are not used."""
    kept: list[str] = []
    drop: set[str] = set()
    for line in text.splitlines():
        pin, digest = PIN.match(line), HASH.search(line)
        if pin:
            if pin[1] not in known:
                known[pin[1]] = unused(pin[1])
            drop = known[pin[1]]
        if digest is None or digest[1] not in drop:
            kept.append(line)
    # The last hash of a pin has no continuation.
    pairs = zip(kept, [*kept[1:], ""], strict=True)
    return "".join(
        f"{line if below.startswith(' ') else line.removesuffix(chr(92)).rstrip()}\n"
        for line, below in pairs
    )


if __name__ == "__main__":
    found: dict[str, set[str]] = {}
    for lock in map(Path, sys.argv[1:]):
        lock.write_text(trimmed(lock.read_text(), found))
