"""A record as an OCI artifact: the same manifest in a registry and in an image layout.

The first layer is the record (or the statement) itself, the others are the blobs that it
names, one each. Manifests are canonical JSON, so that equal records have equal manifests.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING

import msgspec

from trtbuild.canonical import encode
from trtbuild.store.tiers.tier import TierError

if TYPE_CHECKING:
    from trtbuild.store.record import Blob

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
RECORD_TYPE = "application/vnd.trtbuild.record.v1"
STATEMENT_TYPE = "application/vnd.trtbuild.statement.v1"
RECORD_LAYER = "application/vnd.trtbuild.record.v1+json"
STATEMENT_LAYER = "application/vnd.trtbuild.statement.v1+json"
PARTS_TYPE = "application/vnd.trtbuild.parts.v1"
PARTS_LAYER = "application/vnd.trtbuild.parts.v1+json"
BLOB_LAYER = "application/octet-stream"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
"""The config of an artifact (image-spec 1.1, "Guidance for an Empty Descriptor")."""

MAX_MANIFEST_BYTES = 4 << 20
"""What registries take at least (distribution-spec, "Pushing Manifests")."""

_MAX_INSIDE_BYTES = 256 << 10
"""What is inside its manifest too (image-spec 1.1, "Embedded Content"): one question less."""

_TITLE = "org.opencontainers.image.title"


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Something by its digest; ``data`` is the thing itself in base64, where it is small."""

    media_type: str
    digest: str
    size: int
    artifact_type: str = ""
    annotations: dict[str, str] = {}
    data: str = ""

    @property
    def sha256(self) -> str:
        """The digest's hex digits.

        Raises:
            TierError: it is not a sha256.
        """
        name, _, digits = self.digest.partition(":")
        if name != "sha256" or len(digits) != 64 or set(digits) - set("0123456789abcdef"):  # noqa: PLR2004  digits of a sha256
            raise TierError(f"digest {self.digest!r}: expected sha256 and 64 hex digits")
        return digits


class Package(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A manifest, as far as it is read."""

    schema_version: int
    media_type: str
    artifact_type: str
    config: Descriptor
    layers: list[Descriptor]
    annotations: dict[str, str] = {}


def describe(media_type: str, data: bytes) -> Descriptor:
    """Return the descriptor of bytes in memory."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Descriptor(media_type=media_type, digest=digest, size=len(data))


def pack(name: str, data: bytes, blobs: tuple[Blob, ...]) -> bytes:
    """Return the manifest of a record or statement called ``name`` with the blobs it names."""
    artifact_type, layer_type = _types(name)
    first = describe(layer_type, data)
    if len(data) <= _MAX_INSIDE_BYTES:
        first = msgspec.structs.replace(first, data=base64.b64encode(data).decode())
    layers = [first]
    layers += [
        Descriptor(
            media_type=BLOB_LAYER,
            digest=f"sha256:{blob.sha256}",
            size=blob.bytes,
            annotations={_TITLE: blob.name},
        )
        for blob in blobs
    ]
    return encode(
        Package(
            schema_version=2,
            media_type=MANIFEST_TYPE,
            artifact_type=artifact_type,
            config=describe(EMPTY_TYPE, EMPTY),
            layers=layers,
            annotations={_TITLE: name},
        )
    )


def unpack(where: str, name: str, manifest: bytes) -> Descriptor:
    """Return the descriptor of the record or statement that a manifest is the package of.

    Raises:
        TierError: it is no manifest of ours, or not the one called ``name``.
    """
    try:
        package = msgspec.json.decode(manifest, type=Package)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _foreign(where, name, str(error)) from error
    wanted, layer = _types(name)
    if package.artifact_type != wanted:
        raise _foreign(where, name, f"artifact type {package.artifact_type!r}")
    if package.annotations.get(_TITLE) != name:
        raise _foreign(where, name, f"it is {package.annotations.get(_TITLE)!r}")
    if not package.layers or package.layers[0].media_type != layer:
        raise _foreign(where, name, f"its first layer is not {layer}")
    return package.layers[0]


def inside(where: str, name: str, layer: Descriptor) -> bytes | None:
    """Return the verified bytes of a layer that is inside its manifest, None where it is not.

    Raises:
        TierError: they are not those of the layer's digest.
    """
    if not layer.data:
        return None
    try:
        data = base64.b64decode(layer.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _foreign(where, name, f"the data of its first layer: {error}") from error
    if len(data) != layer.size or hashlib.sha256(data).hexdigest() != layer.sha256:
        raise _foreign(where, name, "the data of its first layer has another digest")
    return data


def title_of(where: str, manifest: bytes) -> str:
    """Return the name of what a manifest is the package of."""
    try:
        package = msgspec.json.decode(manifest, type=Package)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _foreign(where, "a manifest", str(error)) from error
    return package.annotations.get(_TITLE, "")


def _types(name: str) -> tuple[str, str]:
    """Return the types of an artifact and of its first layer."""
    if name.startswith("v1/ac/"):
        return RECORD_TYPE, RECORD_LAYER
    if name.startswith("v1/parts/"):
        return PARTS_TYPE, PARTS_LAYER
    return STATEMENT_TYPE, STATEMENT_LAYER


def _foreign(where: str, name: str, reason: str) -> TierError:
    return TierError(
        f"{where}: {name}: not what trtbuild puts under this name: {reason}. It was not used; "
        f"delete it there, and push it again from a sound store"
    )
