"""Add a key or a revocation to a policy file, at its end, so that a user's comments stay."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from trtbuild.errors import UsageError
from trtbuild.pipeline.key_files import load_public, own_keys
from trtbuild.runtime.trust_files import default_policy, load_policy, policy_name
from trtbuild.store import Store
from trtbuild.store.location import root_of
from trtbuild.store.record import is_digest
from trtbuild.trust.policy import (
    DEVELOPER,
    NEW_POLICY,
    TrustedKey,
    key_table,
    keyring,
    read_policy,
    revoked_table,
)

if TYPE_CHECKING:
    from trtbuild.trust.policy import Policy

_Kind = Literal["key", "engine"]
_DIGITS = re.compile(r"[0-9a-f]{6,64}")


def told_if_new(at: str) -> str:
    """Return what changes once the policy ``at`` is written; empty where there is one."""
    if os.path.lexists(_path(at)):
        return ""
    return (
        "\nThis policy is new, and refuses unsigned engines: those that you built on this "
        "machine too, which are\nloaded where there is no policy. Sign them (trtbuild keys "
        "generate NAME --use, then trtbuild engine\nRECIPE again), or set "
        'unsigned = "local" in it to load those built here as before.'
    )


def add_key(
    text: str, *, name: str, role: str, models: tuple[str, ...], at: str
) -> tuple[Path, str]:
    """Trust a key in the policy file ``at``; return the file's path and the key's id.

    Raises:
        UsageError: it is no key, is trusted already, or name, role or pattern is wrong.
        TrustError: T01, the policy cannot be used.
    """
    key = load_public(text)
    entry = {
        "name": name or (text if text in own_keys() else f"key-{key.keyid[:8]}"),
        "role": role,
        "public": key.text,
        "models": list(models),
    }
    try:
        trusted = msgspec.convert(entry, TrustedKey, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"the key cannot be added as {entry['name']!r}, {role} of {', '.join(models)}: "
            f"{error}. Give --name with A-Z a-z 0-9 . _ -, --role builder or promoter, and "
            f"--model with a recipe's name or a pattern"
        ) from error
    path, before, policy = _read(at)
    if key.keyid in policy.revoked_keys():
        reason = policy.revoked_keys()[key.keyid]
        raise UsageError(
            f"{path}: {key.keyid[:12]} is revoked there{f' ({reason})' if reason else ''}: "
            f"expected another key. Take its [[revoked]] table out of the file if it is good"
        )
    if key.keyid in keyring(policy).trusted:
        known = keyring(policy).trusted[key.keyid]
        raise UsageError(
            f"{path}: {key.keyid[:12]} is there as {known.name!r} ({known.role} of "
            f"{', '.join(known.models)}): a key has one role. Edit the file to change it"
        )
    _append(path, before, key_table(trusted))
    return path, key.keyid


def add_revoked(what: str, reason: str, at: str, store: str = "") -> tuple[Path, str, str]:
    """Revoke a key or an engine; return the file's path, what was revoked, and its digest.

    Digits mean the key of the policy or the user, or the engine of ``store``, that begins with
    them, where there is only one. All 64 of something that is not known here are revoked as a
    key and as an engine: what leaked need not have been listed before.

    Raises:
        UsageError: ``what`` is neither, or the first digits of more than one.
        TrustError: T01, the policy cannot be used.
    """
    if at and not os.path.lexists(_path(at)):
        raise UsageError(
            f"policy {at}: no such file: expected the policy in which to revoke. Correct "
            f"--policy or TRTBUILD_POLICY; 'trtbuild keys trust' begins a new one"
        )
    path, before, policy = _read(at)
    kinds, digest = _meant(what, policy, store)
    _append(path, before, "".join(revoked_table(kind, digest, reason) for kind in kinds))
    return path, " or ".join(kinds), digest


def _meant(what: str, policy: Policy, store: str) -> tuple[tuple[_Kind, ...], str]:
    """Return what is to be revoked: a key's id, an engine's digest, or what may be either."""
    own = {name: key.keyid for name, key in own_keys().items()}
    trusted = {key.name: keyid for keyid, key in keyring(policy).trusted.items()}
    names = {**own, **trusted}
    if what in names or not _DIGITS.fullmatch(what):
        return ("key",), names.get(what) or load_public(what).keyid
    found: list[tuple[_Kind, str]] = [
        ("key", keyid)
        for keyid in sorted({*own.values(), *keyring(policy).trusted})
        if keyid.startswith(what)
    ]
    if not found or not is_digest(what):
        found += [("engine", sha256) for sha256 in _engines(what, store)]
    if not found and is_digest(what):
        return ("key", "engine"), what
    if not found:
        raise UsageError(
            f"{what!r} begins no known key's id and no digest of an engine in this store: give "
            f"all 64 digits, a key's name, its .pub file, or another --store"
        )
    if len(found) > 1:
        listed = ", ".join(f"{kind} {digest}" for kind, digest in found)
        raise UsageError(f"{what!r} names more than one: {listed}. Give more digits")
    kind, digest = found[0]
    return (kind,), digest


def _engines(digits: str, store: str) -> list[str]:
    """Return the digests of the store's engines that begin with these digits."""
    if not root_of(store).exists():
        return []
    return Store.open_existing(store).keys("plan", digits)


def _path(at: str) -> Path:
    name = policy_name(at)
    return default_policy() if name == DEVELOPER else Path(name)


def _read(at: str) -> tuple[Path, str, Policy]:
    """Return the path, text and content of a policy; a new one where there is none yet."""
    path = _path(at)
    if not os.path.lexists(path):
        return path, NEW_POLICY, read_policy(NEW_POLICY.encode(), str(path))
    policy = load_policy(str(path))
    return path, path.read_text("utf-8"), policy


def _append(path: Path, before: str, lines: str) -> None:
    """Replace the file by one with more lines at its end, all or nothing.

    Raises:
        UsageError: it cannot be written.
    """
    text = before.rstrip("\n") + "\n" + lines
    read_policy(text.encode(), str(path))
    real = path.resolve()
    draft = real.with_name(f".{real.name}.{secrets.token_hex(8)}")
    try:
        real.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(
            os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
        ) as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(real)
    except OSError as error:
        raise UsageError(f"policy {path}: cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
