"""What an engine of the store needs beside its bytes: plug-in libraries, stripped weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.backends.session import Attached
from trtbuild.errors import TrustError

if TYPE_CHECKING:
    from trtbuild.engine import Manifest
    from trtbuild.store import Store


def attached(store: Store, manifest: Manifest) -> Attached:
    """Return what the key of an engine names, read and verified by its digests.

    Raises:
        TrustError: the engine was stored without its weights, and nothing names them.
        StoreError: a library or the weights are lost or damaged.
    """
    settings = dict(manifest.preimage.settings)
    plugins = str(settings.get("plugins", ""))
    if settings.get("strip_plan") and not manifest.weights_sha256:
        raise TrustError(
            f"engine {manifest.sha256[:12]} was stored without its weights, and its manifest "
            "does not say where they are: build it again"
        )
    return Attached(
        plugins=tuple(store.read(sha256) for sha256 in plugins.split(",") if sha256),
        plugin_digests=plugins,
        dla_core=int(settings.get("dla_core", -1)),
        weights=store.read(manifest.weights_sha256) if manifest.weights_sha256 else b"",
        streams_weights=bool(settings.get("weight_streaming")),
    )
