"""Load an engine of the store: find it, check it, and only then give its bytes to a runtime."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from trtbuild.backends import runtime
from trtbuild.backends.session import DEFAULT, check_count
from trtbuild.errors import StoreError, TrustError
from trtbuild.runtime import metrics, warmup
from trtbuild.runtime.admission import DEFAULT_TERMS, admit, remember
from trtbuild.runtime.io_signature import signature_problem
from trtbuild.store import Store
from trtbuild.store.counters import Tally, count, flush
from trtbuild.trust.refusal import SHOWN_DIGITS, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trtbuild.backends.session import LoadedSession, SessionOptions
    from trtbuild.engine import Manifest
    from trtbuild.runtime.admission import Admitted, Terms
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
    engine. Then inputs and outputs are compared with the manifest once more, the release is
    remembered, and every context runs ``warmup_runs`` times. ``session.admission`` says why
    the engine was let in.

    Raises:
        UsageError: nothing, or more than one engine, has this name; or an option is wrong.
        MissingBackendError: driver, GPU, library or device memory is missing here.
        TrustError: a check refuses the engine; ``code`` says which.
        StoreError: the store cannot be read.
    """
    check_count("warmup", warmup_runs, 0)
    opened = Store.open_existing(store)
    with _counted(opened):
        admitted = admit(opened, str(engine), terms, options)
        session = _opened(admitted, options)
    try:
        if warmup_runs:
            warmup.warm_up(session, admitted.manifest.preimage.profiles, warmup_runs)
    except BaseException:
        session.close()
        raise
    metrics.register(session)
    return session


def _opened(admitted: Admitted, options: SessionOptions) -> LoadedSession:
    """Return the session of an engine; what was loaded is remembered once it is."""
    manifest = admitted.manifest
    target = manifest.preimage.target
    session = runtime(target.backend).open_session(
        admitted.data, target, options, admitted.attached, manifest.preimage.profiles
    )
    try:
        _check_signature(manifest, session)
        remember(admitted)
    except BaseException:
        session.close()
        raise
    session.admission = admitted.admission
    session.stats.label("engine", manifest.sha256[:SHOWN_DIGITS])
    session.stats.label("signed", "yes" if admitted.admission.signed else "no")
    return session


def _check_signature(manifest: Manifest, session: LoadedSession) -> None:
    """Refuse (T15) what takes or gives something else than its manifest says.

    The child of a first load looks at that too, but not at every load.
    """
    problem = signature_problem(manifest.inputs, manifest.outputs, session)
    if problem:
        raise refusal(
            "T15",
            f"engine {manifest.sha256[:SHOWN_DIGITS]}: {problem}",
            "the inputs and outputs of its manifest",
            "Do not serve it: build it again, or serve another release",
        )


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
