"""What objects are called: the same names, below ``v1/``, in every tier."""

from __future__ import annotations

from trtbuild.store.record import check_digest, check_kind

_SHARD_DIGITS = 2

LOCAL_KINDS = frozenset({"file", "memo", "run"})
"""Kinds that stay on their machine: they name its paths and inodes, and a run is no record."""


def travels(kind: str) -> bool:
    """Tell whether records of this kind go to remote tiers."""
    return kind not in LOCAL_KINDS


def blob_name(sha256: str) -> str:
    """Return the name of a blob."""
    return f"v1/cas/sha256/{check_digest(sha256)[:_SHARD_DIGITS]}/{sha256}"


def parts_name(sha256: str) -> str:
    """Return the name of the index of a blob that is there in parts."""
    return f"v1/parts/sha256/{check_digest(sha256)[:_SHARD_DIGITS]}/{sha256}"


def record_name(kind: str, key: str) -> str:
    """Return the name of a record."""
    return f"v1/ac/{check_kind(kind)}/{check_digest(key)[:_SHARD_DIGITS]}/{key}"


def records_prefix(kind: str, digits: str = "") -> str:
    """Return what the names of a kind's records begin with whose keys begin with ``digits``."""
    prefix = f"v1/ac/{check_kind(kind)}/"
    if len(digits) < _SHARD_DIGITS:
        return prefix
    return f"{prefix}{digits[:_SHARD_DIGITS]}/{digits}"


def statements_prefix(subject_sha256: str) -> str:
    """Return what the names of all statements about one engine begin with."""
    return f"v1/att/{check_digest(subject_sha256)}/"


def statement_name(subject_sha256: str, sha256: str) -> str:
    """Return the name of a statement; ``sha256`` is the digest of its envelope."""
    return f"{statements_prefix(subject_sha256)}{check_digest(sha256)}"


def lease_name(kind: str, key: str) -> str:
    """Return the name of the lease on a key."""
    return f"v1/lease/{check_digest(key)[:_SHARD_DIGITS]}/{check_kind(kind)}.{key}"
