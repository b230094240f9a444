"""Installed distributions: their versions and their lists of files, found in a millisecond.

``importlib.metadata`` answers the same, and takes a dozen milliseconds to import: it brings a
parser of e-mail along. A full cache hit asks for half a dozen versions and little else. So
folders are looked at here first, as the specification of installed projects has them
(``NAME-VERSION.dist-info`` with ``METADATA`` and ``RECORD``,
https://packaging.python.org/en/latest/specifications/recording-installed-packages/), and
``importlib.metadata`` is asked about everything that is installed in another way.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path

from trtbuild.engine import Value

_INFO = ".dist-info"
_OTHER = (".egg-info", ".egg", ".egg-link")
_SEPARATORS = re.compile(r"[-_.]+")
_VERSION = b"Version:"
_RECORD = "RECORD"


class Installed(Value, frozen=True, kw_only=True):
    """A distribution; ``record`` is its list of files, ``None`` where it came without one."""

    version: str
    record: str | None


def version(name: str) -> str:
    """Return the version of an installed distribution, or an empty string."""
    folder = _folder(name)
    found = _version_in(folder) if folder else ""
    return found or (_asked_version(name) if folder is None else "")


def find(name: str) -> Installed | None:
    """Return an installed distribution with its list of files, or ``None``."""
    folder = _folder(name)
    if folder is None:
        return _asked(name)
    found = _version_in(folder)
    try:
        record = (folder / _RECORD).read_text("utf-8")
    except OSError:
        record = None
    return Installed(version=found, record=record) if found else _asked(name)


def _folder(name: str) -> Path | None:
    """Return where the metadata of ``name`` are, or ``None`` where this module cannot tell."""
    wanted = _plain(name)
    for entry in sys.path:
        found = _names_in(entry or ".", _changed_ns(entry or ".")).get(wanted)
        if found is not None:
            return Path(entry or ".", found) if found.endswith(_INFO) else None
    return None


def _changed_ns(entry: str) -> int:
    try:
        return os.stat(entry).st_mtime_ns  # noqa: PTH116  on the way to every hit
    except OSError:
        return 0


@functools.lru_cache(maxsize=64)
def _names_in(entry: str, _changed_ns: int) -> dict[str, str]:
    """Return the distributions in a folder of ``sys.path``: file names by plain names."""
    try:
        files = os.listdir(entry)  # noqa: PTH208  names are wanted
    except OSError:  # no folder, or a zip file, of which importlib.metadata knows
        return {}
    found: dict[str, str] = {}
    for file in sorted(files):
        if file.endswith((_INFO, *_OTHER)):
            stem = file.rpartition(".")[0].partition("-")[0]
            found.setdefault(_plain(stem), file)
    return found


def _plain(name: str) -> str:
    return _SEPARATORS.sub("-", name).lower()


def _version_in(folder: Path) -> str:
    """Return the version that the metadata in a folder state, or an empty string."""
    try:
        with (folder / "METADATA").open("rb") as file:
            for line in file:
                if line.startswith(_VERSION):
                    return line[len(_VERSION) :].strip().decode()
                if not line.strip():  # the end of the header
                    break
    except OSError:
        pass
    return ""


def _asked_version(name: str) -> str:
    found = _asked(name)
    return found.version if found else ""


def _asked(name: str) -> Installed | None:
    from importlib import metadata  # noqa: PLC0415  a dozen milliseconds, seldom needed

    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    return Installed(version=found.version, record=found.read_text(_RECORD))
