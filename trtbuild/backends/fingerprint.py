"""Which build of a library is installed, learned without importing it.

Two builds can carry one version, so the version alone does not identify what makes the bytes of
an engine. An installed distribution lists the hash of each of its files in ``RECORD``; the
digest of that list stands for all of them and costs a millisecond.
"""

from __future__ import annotations

import hashlib
import importlib.util
from typing import TYPE_CHECKING

from trtbuild.backends import distributions
from trtbuild.engine import Fingerprint
from trtbuild.errors import MissingBackendError

if TYPE_CHECKING:
    from trtbuild.backends.distributions import Installed

CUDA_MAJORS = (13, 12)
_MIN_COLUMNS = 2


def installed(backend: str, names: tuple[str, ...], install: str) -> Fingerprint:
    """Return the fingerprint of installed distributions, whose first gives the version.

    ``install`` is the requirement that an error tells the user to install.

    Raises:
        MissingBackendError: one is not installed, or was installed without a list of files.
    """
    found = {name: _distribution(backend, name, install) for name in names}
    total = hashlib.sha256()
    for name, each in found.items():
        for line in _contents(backend, name, each, install):
            total.update(line.encode() + b"\n")
    first = found[names[0]]
    return Fingerprint(backend=backend, version=first.version, build=total.hexdigest())


def layout(module: str) -> tuple[str, ...]:
    """Return the distributions that hold TensorRT's ``module``; the first has the library.

    Since 10 they are by CUDA version, in 8.6.1 without one, in 8.6.0 a single wheel. What the
    user names (``tensorrt``) can have another version than they: 8.6.1.post1 has 8.6.1.
    """
    stems = (*(f"{module}_cu{major}" for major in CUDA_MAJORS), module)
    found = ((f"{stem}_libs", f"{stem}_bindings") for stem in stems)
    return next((names for names in found if distributions.version(names[0])), (module,))


def cuda_major(library: str) -> int:
    """Return the version of CUDA that a distribution of :func:`layout` is for, 0 if unknown."""
    return next((major for major in CUDA_MAJORS if f"_cu{major}_" in library), 0)


def has_module(name: str) -> bool:
    """Return whether a top-level module is installed; does not import it."""
    return importlib.util.find_spec(name) is not None


def _distribution(backend: str, name: str, install: str) -> Installed:
    found = distributions.find(name)
    if found is None:
        message = (
            f"backend {backend!r} needs the Python package {name!r}, not installed here: pip "
            f"install '{install}'"
        )
        raise MissingBackendError(message)
    return found


def _contents(backend: str, name: str, found: Installed, install: str) -> list[str]:
    """Return ``path,hash`` of the library's own files, sorted.

    What an installer adds differs between machines that have the same library: byte-compiled
    files, its own name, where the wheel came from. Those lines are left out.
    """
    if found.record is None:
        message = (
            f"backend {backend!r}: {name} {found.version} was installed without a RECORD file, "
            f"so its build cannot be identified: pip install --force-reinstall '{install}'"
        )
        raise MissingBackendError(message)
    lines = []
    for line in found.record.splitlines():
        columns = line.rsplit(",", 2)
        path = columns[0]
        if len(columns) < _MIN_COLUMNS or path.endswith(".pyc") or ".dist-info/" in path:
            continue
        lines.append(f"{path},{columns[1]}")
    return sorted(lines)
