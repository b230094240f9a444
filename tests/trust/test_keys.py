"""Keys as they are made and revoked."""

from __future__ import annotations

import errno
import json
import os
import re
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey

import trtbuild
from tests.trust.commands import manifest_of, run, signed
from tests.trust.forge import STRANGER
from trtbuild.cli import policy_file
from trtbuild.errors import TrustError, UsageError
from trtbuild.pipeline.key_files import load_key, own_keys
from trtbuild.runtime.trust_files import load_policy
from trtbuild.trust.keys import KeyFormatError, private_key

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
    assert "--name nightly --role promoter" in run("keys", "generate", "nightly")
    assert list(own_keys()) == ["nightly"]


def test_what_is_printed_short_can_be_revoked_short(place: Path) -> None:
    engine = signed(place)
    assert "begins no known key" in run("keys", "revoke", "0123456789ab", code=2)
    keyid = own_keys()["nightly"].keyid
    assert f"key {keyid} is revoked" in run("keys", "revoke", keyid[:12])
    assert f"engine {engine} is revoked" in run("keys", "revoke", engine[:12])
    with pytest.raises(TrustError, match=r"engine .* was revoked"):
        trtbuild.load(manifest_of(place / "store").key)


def test_what_is_not_known_here_is_revoked_as_a_key_and_as_an_engine(place: Path) -> None:
    keyid = STRANGER.public.keyid
    assert f"key or engine {keyid} is revoked" in run("keys", "revoke", keyid)
    told = run("keys", "trust", STRANGER.public.text, "--name", "late", code=2)
    assert f"{keyid[:12]} is revoked there" in told
    assert f"key {keyid}  REVOKED" in run("keys", "list")
    assert f"engine {keyid}  REVOKED" in run("keys", "list")
    assert json.loads(run("keys", "list", "--json"))["revoked"]["keys"] == {keyid: ""}
    policy = load_policy(str(place / "config" / "trtbuild" / "policy.toml"))
    assert keyid in policy.revoked_engines()


def test_a_file_called_like_a_key_is_not_that_key(place: Path) -> None:
    run("keys", "generate", "nightly")
    key = load_key("nightly").public
    (place / "nightly").write_bytes(STRANGER.pem(b""))
    (place / "nightly").chmod(0o600)
    assert load_key("nightly").public == key
    assert load_key("./nightly").public == STRANGER.public
    (place / "other").write_bytes(STRANGER.pem(b""))
    (place / "other").chmod(0o600)
    assert load_key("other").public == STRANGER.public


def test_a_key_that_is_there_is_signed_with_when_it_is_chosen(place: Path) -> None:
    run("keys", "generate", "nightly")
    assert "trtbuild keys use nightly" in run("keys", "generate", "nightly", "--use", code=2)
    assert "sign with nightly" in run("keys", "use", "nightly")
    assert (place / "config" / "trtbuild" / "signing-key").read_text() == "nightly\n"
    assert "'trtbuild keys list' shows" in run("keys", "use", "nightyl", code=2)


def test_a_key_that_belongs_to_another_user_signs_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("keys", "generate", "nightly")
    path = place / "config" / "trtbuild" / "keys" / "nightly.key"
    if os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    else:
        os.chown(path, 65534, 65534)
    with pytest.raises(UsageError, match="belongs to user"):
        load_key("nightly")


@pytest.mark.usefixtures("place")
def test_digits_of_two_keys_revoke_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    run("keys", "generate", "one")
    run("keys", "generate", "two")
    # Nobody can make two ids that begin alike: here no digit at all is enough to begin one.
    monkeypatch.setattr(policy_file, "_DIGITS", re.compile("[0-9a-f]*"))
    message = run("keys", "revoke", "", code=2)
    assert "names more than one" in message
    assert all(key.keyid in message for key in own_keys().values())


def test_a_private_key_of_another_kind_signs_nothing() -> None:
    pem = Ed448PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with pytest.raises(KeyFormatError, match="expected an Ed25519 private key"):
        private_key(pem, b"")
