"""What user code read while it ran, and whether any of that has changed since.

A light module: a full cache hit asks :func:`changed` and imports neither a framework nor numpy.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from trtbuild.backends import distributions
from trtbuild.canonical import encode, sha256_file
from trtbuild.engine import Value

ABSENT = ""
"""The digest of a file or folder that is not there."""


class FileRead(Value, frozen=True, kw_only=True):
    """A file that was opened for reading; ``sha256`` is empty where it did not exist."""

    path: str
    sha256: str


class FolderListed(Value, frozen=True, kw_only=True):
    """A folder whose names were listed; ``sha256`` is over the sorted names."""

    path: str
    sha256: str


class Distribution(Value, frozen=True, kw_only=True):
    """An installed distribution of which a module or data file was used."""

    name: str
    version: str


class Dependencies(Value, frozen=True, kw_only=True):
    """Everything outside trtbuild that the result of a function was seen to depend on.

    Each tuple is sorted. Paths are absolute, so this describes one machine.
    """

    files: tuple[FileRead, ...] = ()
    folders: tuple[FolderListed, ...] = ()
    distributions: tuple[Distribution, ...] = ()


def changed(dependencies: Dependencies) -> str:
    """Return the first thing that differs from what was recorded, in words, or ``""``.

    Content is compared, never times: files are hashed (about a second per gigabyte).
    """
    for distribution in dependencies.distributions:
        version = distributions.version(distribution.name)
        if version != distribution.version:
            return f"{distribution.name} was {distribution.version}, is {version or 'missing'}"
    for folder in dependencies.folders:
        if folder_digest(folder.path) != folder.sha256:
            return f"the files in {folder.path} are others"
    for file in dependencies.files:
        now = file_digest(file.path)
        if now != file.sha256:
            verb = "is new" if file.sha256 == ABSENT else "is gone" if now == ABSENT else ""
            return f"{file.path} {verb or 'has changed'}"
    return ""


def file_digest(path: str) -> str:
    """Return the sha256 of a file's content, or :data:`ABSENT` where there is no such file."""
    try:
        return sha256_file(Path(path))
    except OSError:  # gone, a folder, or not ours to read: all of them are "no content"
        return ABSENT


def folder_digest(path: str) -> str:
    """Return the sha256 of the sorted names in a folder, or :data:`ABSENT`."""
    try:
        names = sorted(os.listdir(path))  # noqa: PTH208  names are wanted, Path.iterdir joins
    except OSError:
        return ABSENT
    return hashlib.sha256(encode(names)).hexdigest()
