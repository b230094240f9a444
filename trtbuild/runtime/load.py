"""Load an engine of the store: find it, check it, and only then give its bytes to a runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.backends import runtime
from trtbuild.backends.session import DEFAULT
from trtbuild.engine import Manifest
from trtbuild.errors import TrustError, UsageError
from trtbuild.runtime import metrics, warmup
from trtbuild.store import Store, find_engine

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.backends.session import LoadedSession, SessionOptions


def load(
    engine: str | Path,
    store: str = "",
    *,
    options: SessionOptions = DEFAULT,
    warmup_runs: int = warmup.RUNS,
) -> LoadedSession:
    """Return a session of an engine; its ``run`` is safe to call from many threads.

    ``engine`` is a digest, a key, a prefix of one, or the path of an engine's file. The
    checks, in order: the record's key is the digest of its own pre-image; what the engine needs
    is here (machine, GPU, driver, library and its version); the bytes, read once into memory,
    have the manifest's digest; the GPU has memory for them. Then every context runs
    ``warmup_runs`` times.

    Raises:
        UsageError: nothing, or more than one engine, has this name; or an option is wrong.
        MissingBackendError: driver, GPU, library or device memory is missing here.
        TrustError: the engine is not for this machine or library, or its record is not sound.
        StoreError: the engine's bytes are lost or damaged.
    """
    if warmup_runs < 0:
        raise UsageError(f"warmup is {warmup_runs}, expected 0 or more")
    opened = Store.open(store)
    record = find_engine(opened, str(engine))
    manifest = record.read(Manifest)
    key = manifest.preimage.digest
    if not key == record.key == manifest.key:
        raise TrustError(
            f"engine {record.key[:12]}: its manifest describes the engine {key[:12]}: the "
            f"store was tampered with. Build the engine again in another store"
        )
    preflight(manifest, options)
    target = manifest.preimage.target
    module = runtime(target.backend)
    session = module.open_session(opened.read(manifest.sha256), target, options)
    session.stats.label("engine", manifest.sha256[:12])
    if warmup_runs:
        warmup.warm_up(session, manifest.preimage.profiles, warmup_runs)
    metrics.register(session)
    return session


def preflight(manifest: Manifest, options: SessionOptions = DEFAULT) -> None:
    """Refuse an engine that this machine cannot run, before its bytes are read.

    Raises:
        MissingBackendError: driver, GPU, library or package is missing here, or too old.
        TrustError: the engine is for another machine, GPU or version of its library.
        UsageError: an option has no meaning for it.
    """
    runtime(manifest.preimage.target.backend).preflight(manifest, options)
