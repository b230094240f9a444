"""Which build of a library is installed, learned without importing it.

Two builds can carry one version, so the version alone does not identify what makes the bytes of
an engine. An installed distribution lists the hash of each of its files in ``RECORD``; the
digest of that list stands for all of them and costs a millisecond.
"""

from __future__ import annotations

import hashlib
import importlib.util
from importlib import metadata

from trtbuild.engine import Fingerprint
from trtbuild.errors import MissingBackendError

_RECORD = "RECORD"
_MIN_COLUMNS = 2


def installed(backend: str, distributions: tuple[str, ...], install: str) -> Fingerprint:
    """Return the fingerprint of the installed ``distributions``, the first giving the version.

    ``install`` is the requirement that an error tells the user to install.

    Raises:
        MissingBackendError: one is not installed, or was installed without a list of files.
    """
    found = [_distribution(backend, name, install) for name in distributions]
    total = hashlib.sha256()
    for distribution in found:
        for line in _contents(backend, distribution, install):
            total.update(line.encode() + b"\n")
    return Fingerprint(backend=backend, version=found[0].version, build=total.hexdigest())


def has_module(name: str) -> bool:
    """Return whether a top-level module is installed; does not import it."""
    return importlib.util.find_spec(name) is not None


def version(distribution: str) -> str:
    """Return the version of an installed distribution, or an empty string."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _distribution(backend: str, name: str, install: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        message = (
            f"backend {backend!r} needs the Python package {name!r}, not installed here: pip "
            f"install '{install}'"
        )
        raise MissingBackendError(message) from error


def _contents(backend: str, distribution: metadata.Distribution, install: str) -> list[str]:
    """Return ``path,hash`` of the library's own files, sorted.

    What an installer adds differs between machines that have the same library: byte-compiled
    files, its own name, where the wheel came from. Those lines are left out.
    """
    record = distribution.read_text(_RECORD)
    if record is None:
        message = (
            f"backend {backend!r}: {distribution.name} {distribution.version} was installed "
            f"without a {_RECORD} file, so its build cannot be identified: pip install "
            f"--force-reinstall '{install}'"
        )
        raise MissingBackendError(message)
    lines = []
    for line in record.splitlines():
        columns = line.rsplit(",", 2)
        path = columns[0]
        if len(columns) < _MIN_COLUMNS or path.endswith(".pyc") or ".dist-info/" in path:
            continue
        lines.append(f"{path},{columns[1]}")
    return sorted(lines)
