"""Signing keys in files: the user's config folder, or wherever a machine mounts its secrets.

    keys/NAME.key     private, PKCS #8 PEM, mode 0600, encrypted where a passphrase is given
    keys/NAME.pub     public, PEM
    signing-key       the name of the key that builds sign with, if any

A passphrase comes from ``TRTBUILD_KEY_PASSPHRASE`` and from nowhere else.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.errors import UsageError
from trtbuild.pipeline.chosen_key import config_folder
from trtbuild.trust.keys import (
    KeyFormatError,
    generate,
    private_key,
    public_key,
)

if TYPE_CHECKING:
    from trtbuild.trust.keys import (
        PrivateKey,
        PublicKey,
    )

PASSPHRASE_VARIABLE = "TRTBUILD_KEY_PASSPHRASE"  # noqa: S105  the name of a variable

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_KEY_BYTES = 64 << 10
_LONGEST_PATH = 4096


def keys_folder() -> Path:
    """Return the folder of the user's keys."""
    return config_folder() / "keys"


def make_key(name: str) -> tuple[PrivateKey, Path]:
    """Make a key, write both halves durably, and return it with the path of its private half.

    Raises:
        UsageError: the name is taken or no name, or the folder cannot be written.
    """
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise UsageError(f"{name!r} is no name of a key: expected 1 to 64 of A-Z a-z 0-9 . _ -")
    key = generate()
    folder = keys_folder()
    path = folder / f"{name}.key"
    passphrase = os.environ.get(PASSPHRASE_VARIABLE, "").encode()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_new(path, key.pem(passphrase), 0o600)
        try:
            _write_new(folder / f"{name}.pub", key.public.pem(), 0o644)
        except OSError:  # half a key would only block the name
            path.unlink()
            raise
    except FileExistsError as error:
        taken = error.filename2 or error.filename
        raise UsageError(
            f"a key called {name!r} is there already ({taken}): sign with it "
            f"(trtbuild keys use {name}), or give another name; keys are rotated by trusting "
            f"the new one beside the old"
        ) from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    return key, path


def load_key(name: str) -> PrivateKey:
    """Return the private key that ``name`` (of ours, which comes first) or a path means.

    Raises:
        UsageError: there is none, it is not ours, others may read it, or its passphrase is
            missing or wrong.
    """
    path = _path_of(name)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise UsageError(
            f"signing key {name!r}: {path}: {error.strerror}. 'trtbuild keys list' shows the "
            f"keys that are here, 'trtbuild keys generate NAME' makes one"
        ) from error
    if status.st_uid not in (os.geteuid(), 0):
        raise UsageError(
            f"signing key {path}: it belongs to user {status.st_uid}: expected a file of yours "
            f"or root's, which nobody else can replace. Copy it, or give another"
        )
    if not stat.S_ISREG(status.st_mode) or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(
            f"signing key {path}: other users may read or change it: expected a file of mode "
            f"0600. Run chmod 600 {path}, and make a new key if others had access"
        )
    passphrase = os.environ.get(PASSPHRASE_VARIABLE, "").encode()
    try:
        return private_key(data, passphrase)
    except KeyFormatError as error:
        raise UsageError(
            f"signing key {path}: {error}. Its passphrase is taken from {PASSPHRASE_VARIABLE}"
        ) from error


def load_public(text: str) -> PublicKey:
    """Return the public key that a name of ours, a file, or the key's own text means.

    Raises:
        UsageError: it is none of these.
    """
    own = keys_folder() / f"{text}.pub"
    path = own if _NAME.fullmatch(text) and own.is_file() else Path(text)
    try:
        content = (
            path.read_text("ascii") if len(text) < _LONGEST_PATH and path.is_file() else text
        )
        return public_key(content)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{text[:80]!r} names none of your keys ({', '.join(own_keys()) or 'none'}) and no "
            f"file of a public key: {error}. Give a .pub file, or the line that 'trtbuild keys "
            f"list' prints where the key was made"
        ) from error


def own_keys() -> dict[str, PublicKey]:
    """Return the user's keys by name; files that are no keys are left out."""
    found = {path.stem: _public_or_none(path) for path in sorted(keys_folder().glob("*.pub"))}
    return {name: key for name, key in found.items() if key is not None}


def _public_or_none(path: Path) -> PublicKey | None:
    try:
        return public_key(path.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _path_of(name: str) -> Path:
    own = keys_folder() / f"{name}.key"
    is_own = _NAME.fullmatch(name) and (os.path.lexists(own) or not Path(name).is_file())
    return own if is_own else Path(name)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file under a name that is free, whole and durable, or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(draft, flags, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    try:
        _sync_folder(path.parent)
    except OSError:
        path.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
