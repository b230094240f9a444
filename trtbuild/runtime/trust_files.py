"""The files that trust rests on: the policy, the lockfile, and what was loaded before.

A file that others may write to is not trusted, and a missing or broken one is never read as
an empty one where that would allow more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from trtbuild.runtime import private_files
from trtbuild.trust.lockfile import MAX_LOCK_BYTES, read_lock, wrong_lock
from trtbuild.trust.memory import MAX_MEMORY_BYTES, Memory, read_memory, write_memory
from trtbuild.trust.policy import (
    DEVELOPER,
    DEVELOPER_POLICY,
    MAX_POLICY_BYTES,
    read_policy,
)
from trtbuild.trust.refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from trtbuild.errors import TrustError
    from trtbuild.trust.lockfile import Lock
    from trtbuild.trust.memory import Loaded
    from trtbuild.trust.policy import (
        Policy,
    )

POLICY_VARIABLE = "TRTBUILD_POLICY"
STATE_VARIABLE = "TRTBUILD_STATE"


def default_policy() -> Path:
    """Return where the user's policy is, whether there is one or not."""
    return Path(platformdirs.user_config_path("trtbuild", appauthor=False)) / "policy.toml"


def policy_name(given: str) -> str:
    """Return the policy in force: a path, or ``developer`` where no file is.

    ``given`` comes first, then ``TRTBUILD_POLICY``, then the user's own file.
    """
    name = given or os.environ.get(POLICY_VARIABLE, "")
    if name:
        return name
    path = default_policy()
    return str(path) if os.path.lexists(path) else DEVELOPER


def load_policy(name: str) -> Policy:
    """Return the policy that :func:`policy_name` named.

    Raises:
        TrustError: T01, it is missing, others may write to it, or it is wrong.
    """
    if name == DEVELOPER:
        return DEVELOPER_POLICY
    try:
        data = private_files.read_linked(Path(name), MAX_POLICY_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise refusal(
            "T01",
            f"policy {name}: {_reason(error)}",
            "a policy",
            f"Correct its path (an argument, or {POLICY_VARIABLE}), or begin one: "
            f"trtbuild keys trust KEY --policy FILE",
        ) from error
    except OSError as error:
        raise refusal(
            "T01",
            f"policy {name}: {_reason(error)}",
            "a file and folder of yours or root's that nobody else may write to",
            f"Correct it, or name another (an argument, or {POLICY_VARIABLE})",
        ) from error
    return read_policy(data, name)


def load_lock(path: Path) -> Lock:
    """Return the lockfile at ``path``.

    Raises:
        TrustError: T02, it is missing, others may write to it, or it is not what
            ``trtbuild lock`` writes.
    """
    try:
        data = private_files.read_linked(path, MAX_LOCK_BYTES)
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise wrong_lock(str(path), _reason(error), missing=missing) from error
    return read_lock(data, str(path))


def state_folder() -> Path:
    """Return where this machine remembers what it loaded: ``TRTBUILD_STATE``, or the user's."""
    given = os.environ.get(STATE_VARIABLE, "")
    if given:
        return Path(given).absolute()
    return Path(platformdirs.user_state_path("trtbuild", appauthor=False))


def make_state_folder() -> Path:
    """Make the folder of :func:`state_folder` for its owner alone, and return it.

    Raises:
        OSError: it cannot be made, or others may write to it.
    """
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    private_files.check_folder(folder)
    return folder


def is_marked(path: Path) -> bool:
    """Tell whether :func:`mark` made ``path``; what others could have made is no mark."""
    try:
        private_files.check_folder(state_folder())
        private_files.read(path, 0)
    except OSError:
        return False
    return True


def mark(path: Path) -> None:
    """Make an empty file in a folder of the state folder, for :func:`is_marked`.

    Raises:
        OSError: it cannot be made.
    """
    make_state_folder()
    path.parent.mkdir(exist_ok=True, mode=0o700)
    private_files.check_folder(path.parent)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def load_memory() -> Memory:
    """Return what was loaded before; nothing where there is no file yet.

    Raises:
        TrustError: T18, it is there and cannot be used.
    """
    path = _memory_path()
    try:
        data = private_files.read(path, MAX_MEMORY_BYTES)
    except FileNotFoundError:
        return Memory()
    except OSError as error:
        raise _no_memory(path, error) from error
    return read_memory(data, str(path))


def remember(place: str, loaded: Loaded, revoked: Collection[str]) -> None:
    """Remember that a release was loaded, durably; two processes never lose each other's.

    What keys in ``revoked`` alone have signed is forgotten.

    Raises:
        TrustError: T18, it cannot be written.
    """
    path = _memory_path()
    try:
        with _locked(path):
            before = load_memory()
            after = before.without(revoked).after(place, loaded)
            if after != before:
                _replace(path, write_memory(after))
    except OSError as error:
        raise _no_memory(path, error) from error


def _memory_path() -> Path:
    return state_folder() / "releases.json"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    make_state_folder()
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path.with_suffix(".lock"), flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(draft, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _no_memory(path: Path, error: OSError) -> TrustError:
    return refusal(
        "T18",
        f"{path}: {_reason(error)}",
        "a file of yours, in a folder of yours, where trtbuild remembers what it loaded",
        f"Repair it, or name a folder that only you may write to with {STATE_VARIABLE}",
    )
