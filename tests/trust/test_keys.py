"""Keys as they are made and revoked."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

import pytest

import trtbuild
from tests.trust.commands import manifest_of, run, signed
from trtbuild.cli import policy_file
from trtbuild.errors import TrustError
from trtbuild.pipeline.key_files import own_keys

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("full_at", [1, 2, 3])
def test_a_key_that_could_not_be_written_leaves_its_name_free(
    place: Path, monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    calls = 0
    sync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in run("keys", "generate", "nightly", code=2)
    assert list((place / "config" / "trtbuild" / "keys").iterdir()) == []
    run("keys", "generate", "nightly")
    assert list(own_keys()) == ["nightly"]


def test_what_is_printed_short_can_be_revoked_short(place: Path) -> None:
    engine = signed(place)
    assert "begins no known key" in run("keys", "revoke", "0123456789ab", code=2)
    keyid = own_keys()["nightly"].keyid
    assert f"key {keyid} is revoked" in run("keys", "revoke", keyid[:12])
    assert f"engine {engine} is revoked" in run("keys", "revoke", engine[:12])
    with pytest.raises(TrustError, match=r"engine .* was revoked"):
        trtbuild.load(manifest_of(place / "store").key)


@pytest.mark.usefixtures("place")
def test_digits_of_two_keys_revoke_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    run("keys", "generate", "one")
    run("keys", "generate", "two")
    # Nobody can make two ids that begin alike: here no digit at all is enough to begin one.
    monkeypatch.setattr(policy_file, "_DIGITS", re.compile("[0-9a-f]*"))
    message = run("keys", "revoke", "", code=2)
    assert "names more than one" in message
    assert all(key.keyid in message for key in own_keys().values())
