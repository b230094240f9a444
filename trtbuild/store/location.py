"""Where a store is, and whether it may be used: its folder, its owner, its ``STORE`` file."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import msgspec
import platformdirs

from trtbuild.canonical import encode
from trtbuild.engine import Value
from trtbuild.errors import StoreError
from trtbuild.store.publish import draft, explained, link_new, make_folders, sync_folders

OFFLINE = "TRTBUILD_OFFLINE"
STORE_VERSION = 1
FOLDERS = ("cas/sha256", "ac", "lease", "tmp", "quarantine", "refs")

_STORE_FILE_LIMIT_BYTES = 4096
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)", re.DOTALL)


class _Version(msgspec.Struct, frozen=True):
    """The ``STORE`` file; a later version may add fields that this one can ignore."""

    store: int
    min_reader: int


class Location(Value, frozen=True, kw_only=True):
    """What a store's URI says: the local folder, and the URIs of remote tiers in order."""

    uri: str
    root: Path
    remotes: tuple[str, ...]


def locate(uri: str) -> Location:
    """Return what ``uri`` says: a folder, remote tiers, or both, joined by commas.

    The empty string is what ``TRTBUILD_STORE`` says. Without a folder at its beginning, the
    store is in the user's cache folder.
    """
    uri = uri or os.environ.get("TRTBUILD_STORE", "")
    first, *others = [part.strip() for part in uri.split(",") if part.strip()] or [""]
    scheme = _SCHEME.fullmatch(first)
    if scheme and scheme[1].lower() != "file":
        return Location(uri=uri, root=_default_root(), remotes=(first, *others))
    folder = scheme[2] if scheme else first
    root = Path(folder).expanduser().absolute() if folder else _default_root()
    return Location(uri=uri or str(root), root=root, remotes=tuple(others))


def root_of(uri: str) -> Path:
    """Return the absolute local folder of the store that ``uri`` names."""
    return locate(uri).root


def is_offline() -> bool:
    """Tell whether ``TRTBUILD_OFFLINE`` forbids the network."""
    return os.environ.get(OFFLINE, "").lower() not in ("", "0", "false", "no")


def _default_root() -> Path:
    return Path(platformdirs.user_cache_path("trtbuild", appauthor=False))


def prepare(root: Path) -> None:
    """Make ``root`` a store where it is none, and refuse it where it must not be used.

    Raises:
        StoreError: others own it or may write to it, a newer version wrote it, or it cannot be
            written.
    """
    with explained(root):
        if not root.exists():
            _make_root(root)
        _check_owner(root)
        _check_version(root)
        top = root / "v1"
        for name in FOLDERS:
            if not (top / name).is_dir():
                make_folders(top / name, root)
        if not (root / "STORE").exists():
            content = encode({"store": STORE_VERSION, "min_reader": STORE_VERSION})
            with draft(top / "tmp", [content]) as written:
                link_new(written.path, root / "STORE", root)
            _check_version(root)


def require_store(uri: str) -> None:
    """Refuse a folder that is no store, for commands that only look: a typo makes none.

    Where tiers stand behind it, it is made: what they have comes there. An empty folder, such
    as a new volume, is an empty store.

    Raises:
        StoreError: there is no store in the folder that ``uri`` names.
    """
    place = locate(uri)
    if place.remotes or (place.root / "STORE").exists() or (place.root / "v1").exists():
        return
    with explained(place.root):
        if place.root.exists():
            _check_owner(place.root)
            if not any(place.root.iterdir()):
                return
    message = (
        f"no store at {place.root}: 'trtbuild engine SOURCE' makes one with its first engine; "
        "--store names another"
    )
    raise StoreError(message)


def _make_root(root: Path) -> None:
    existing = next(folder for folder in root.parents if folder.exists())
    make_folders(root, existing)
    sync_folders(root.parent, existing)


def _check_owner(root: Path) -> None:
    status = root.stat()
    if not stat.S_ISDIR(status.st_mode):
        message = f"store {root}: not a folder. Give a folder with --store"
        raise StoreError(message)
    if status.st_uid not in (os.geteuid(), 0):
        message = (
            f"store {root}: belongs to user {status.st_uid}, not to you; its owner could "
            "change engines that you load. Give a folder of your own with --store"
        )
        raise StoreError(message)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        message = (
            f"store {root}: other users may write to it and could change engines that you "
            f"load. Check what is in it and run: chmod go-w {root}"
        )
        raise StoreError(message)


def _check_version(root: Path) -> None:
    path = root / "STORE"
    try:
        with path.open("rb") as file:
            data = file.read(_STORE_FILE_LIMIT_BYTES)
    except FileNotFoundError:
        return
    try:
        version = msgspec.json.decode(data, type=_Version)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        message = (
            f"store {path}: not a store's version file ({error}). If {root} is a store of "
            "trtbuild, delete this file; otherwise give another folder with --store"
        )
        raise StoreError(message) from error
    if version.min_reader > STORE_VERSION:
        message = (
            f"store {root}: needs a trtbuild that reads stores of version "
            f"{version.min_reader}; this one reads {STORE_VERSION}. Upgrade trtbuild, or give "
            "another folder with --store"
        )
        raise StoreError(message)
