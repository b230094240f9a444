"""Load an engine of the store: find it, check it, and only then give its bytes to a runtime."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from trtbuild.backends import runtime
from trtbuild.backends.session import DEFAULT, check_count
from trtbuild.errors import StoreError, TrustError
from trtbuild.runtime import metrics, warmup
from trtbuild.runtime.admission import DEFAULT_TERMS, admit
from trtbuild.store import Store
from trtbuild.store.counters import Tally, count, flush

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trtbuild.backends.session import LoadedSession, SessionOptions
    from trtbuild.runtime.admission import Terms
    from trtbuild.store.counters import Outcome


def load(
    engine: str | Path,
    store: str = "",
    *,
    options: SessionOptions = DEFAULT,
    warmup_runs: int = warmup.RUNS,
    terms: Terms = DEFAULT_TERMS,
) -> LoadedSession:
    """Return a session of an engine; its ``run`` is safe to call from many threads.

    ``engine`` is a digest, a key, a prefix of one, or the path of an engine's file; with a
    lockfile in ``terms`` it may be a model's name. The checks and their order are those of
    :func:`trtbuild.runtime.admission.admit`; opening looks whether the GPU has memory for the
    engine. Then every context runs ``warmup_runs`` times.

    Raises:
        UsageError: nothing, or more than one engine, has this name; or an option is wrong.
        MissingBackendError: driver, GPU, library or device memory is missing here.
        TrustError: a check refuses the engine; ``code`` says which.
        StoreError: the store cannot be read.
    """
    check_count("warmup", warmup_runs, 0)
    opened = Store.open(store)
    with _counted(opened):
        admitted = admit(opened, str(engine), terms, options)
    manifest = admitted.manifest
    target = manifest.preimage.target
    profiles = manifest.preimage.profiles
    session = runtime(target.backend).open_session(
        admitted.data, target, options, admitted.attached, profiles
    )
    session.stats.label("engine", manifest.sha256[:12])
    if warmup_runs:
        warmup.warm_up(session, profiles, warmup_runs)
    metrics.register(session)
    return session


@contextlib.contextmanager
def _counted(store: Store) -> Iterator[None]:
    """Count an engine that was admitted or refused, at once: services run for long."""
    outcome: Outcome | None = None
    try:
        yield
        outcome = "loaded"
    except TrustError:
        outcome = "refused"
        raise
    except StoreError:
        outcome = "error"
        raise
    finally:
        if outcome is not None:  # not where the call was wrong, or something is missing here
            count(store, Tally(tier="local", kind="load", outcome=outcome, count=1))
            flush(store)
