"""Load an engine of the store: find it, check it, and only then give its bytes to a runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.backends import backend, runtime
from trtbuild.engine import Manifest
from trtbuild.errors import TrustError
from trtbuild.store import Store, find_engine

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.backends import Session


def load(engine: str | Path, store: str = "") -> Session:
    """Return a session of an engine; its ``run`` is safe to call from many threads.

    ``engine`` is a digest, a key, a prefix of one, or the path of an engine's file. The
    checks, in order: the record's key is the digest of its own pre-image; target and library
    version are this machine's; the bytes, read once into memory, have the manifest's digest.

    Raises:
        UsageError: nothing, or more than one engine, has this name.
        MissingBackendError: the backend's runtime is not installed.
        TrustError: the engine is not for this machine or library, or its record is not sound.
        StoreError: the engine's bytes are lost or damaged.
    """
    opened = Store.open(store)
    record = find_engine(opened, str(engine))
    manifest = record.read(Manifest)
    key = manifest.preimage.digest
    if not key == record.key == manifest.key:
        raise TrustError(
            f"engine {record.key[:12]}: its manifest describes the engine {key[:12]}: the "
            f"store was tampered with. Build the engine again in another store"
        )
    target = manifest.preimage.target
    module = runtime(target.backend)
    reason = module.cannot_run(target)
    if reason:
        raise TrustError(
            f"engine {manifest.sha256[:12]} for {target} cannot run here: {reason}"
        )
    check_version(manifest)
    return module.open_session(opened.read(manifest.sha256), target)


def check_version(manifest: Manifest) -> None:
    """Refuse an engine of another version of its library than the one installed here.

    Raises:
        MissingBackendError: the library is not installed.
        TrustError: it has another version.
    """
    target = manifest.preimage.target
    built_with = manifest.preimage.fingerprint.version
    installed = backend(target.backend).fingerprint(target).version
    if installed != built_with:
        raise TrustError(
            f"engine {manifest.sha256[:12]} was built with {target.backend} {built_with}, here "
            f"is {installed}: build it again with this version, or install that one"
        )
