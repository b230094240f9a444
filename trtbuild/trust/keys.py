"""Ed25519 keys: their text, their identity, and signatures with them. No other algorithm.

A key's identity is the sha256 of its SubjectPublicKeyInfo (RFC 8410), so that two tools that
read one key file agree on it: ``openssl pkey -pubin -in FILE -outform DER | sha256sum``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

_DER = serialization.Encoding.DER
_PEM = serialization.Encoding.PEM
_SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
_PKCS8 = serialization.PrivateFormat.PKCS8
_PEM_MARK = "-----BEGIN PUBLIC KEY-----"


class KeyFormatError(ValueError):
    """The text or file is no Ed25519 key, or its passphrase is missing or wrong."""


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """A key that signatures are checked with; ``spki`` is its DER."""

    keyid: str
    spki: bytes
    key: Ed25519PublicKey

    @property
    def text(self) -> str:
        """One line: base64 of the DER, as a policy has it."""
        return base64.b64encode(self.spki).decode()

    def pem(self) -> bytes:
        """Return the key as PEM, which ``openssl`` reads."""
        return self.key.public_bytes(_PEM, _SPKI)

    def holds(self, signature: bytes, message: bytes) -> bool:
        """Tell whether ``signature`` is this key's over ``message``."""
        try:
            self.key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, kw_only=True)
class PrivateKey:
    """A key that signs."""

    key: Ed25519PrivateKey

    @property
    def public(self) -> PublicKey:
        """Its public half."""
        return _public(self.key.public_key())

    def sign(self, message: bytes) -> bytes:
        """Return the signature, 64 bytes; equal messages have equal signatures."""
        return self.key.sign(message)

    def pem(self, passphrase: bytes) -> bytes:
        """Return the key as PKCS #8 PEM, encrypted unless ``passphrase`` is empty."""
        protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            protection = serialization.BestAvailableEncryption(passphrase)
        return self.key.private_bytes(_PEM, _PKCS8, protection)


def generate() -> PrivateKey:
    """Return a new key from the system's random numbers."""
    return PrivateKey(key=Ed25519PrivateKey.generate())


def public_key(text: str) -> PublicKey:
    """Return the key in one line of base64, or in PEM.

    Raises:
        KeyFormatError: it is neither, or a key of another algorithm.
    """
    text = text.strip()
    try:
        if text.startswith(_PEM_MARK):
            loaded = serialization.load_pem_public_key(text.encode())
        else:
            loaded = serialization.load_der_public_key(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error, UnsupportedAlgorithm) as error:
        message = "expected an Ed25519 public key, as PEM or as one line of base64"
        raise KeyFormatError(message) from error
    if not isinstance(loaded, Ed25519PublicKey):
        message = f"expected an Ed25519 public key, this one is {type(loaded).__name__}"
        raise KeyFormatError(message)
    return _public(loaded)


def private_key(pem: bytes, passphrase: bytes) -> PrivateKey:
    """Return the key in a PKCS #8 PEM file; ``passphrase`` is empty where it has none.

    Raises:
        KeyFormatError: the file holds no Ed25519 key, or the passphrase does not open it.
    """
    try:
        loaded = serialization.load_pem_private_key(pem, passphrase or None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        message = f"no private key can be read from it ({error})"
        raise KeyFormatError(message) from error
    if not isinstance(loaded, Ed25519PrivateKey):
        message = f"expected an Ed25519 private key, this one is {type(loaded).__name__}"
        raise KeyFormatError(message)
    return PrivateKey(key=loaded)


def _public(key: Ed25519PublicKey) -> PublicKey:
    spki = key.public_bytes(_DER, _SPKI)
    return PublicKey(keyid=hashlib.sha256(spki).hexdigest(), spki=spki, key=key)
