"""Decide whether an engine may be loaded, and hand out its bytes only if it may.

The order is the point: policy, lockfile, signatures over raw bytes, what was signed, this
machine, the bytes themselves, a first load in a child process; and only then the memory of
what was loaded is written. What any check refuses, no runtime has seen.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.backends import runtime, trt_plan
from trtbuild.backends.session import DEFAULT
from trtbuild.engine import Manifest, Value
from trtbuild.errors import TrustError, UsageError
from trtbuild.runtime import canary, trust_files
from trtbuild.runtime.attached import attached
from trtbuild.runtime.machine import preflight
from trtbuild.store import BlobLostError, find_engine
from trtbuild.store.statements import damaged_statements, statements, was_built_here
from trtbuild.trust.candidate import Candidate, Situation
from trtbuild.trust.checks import decide
from trtbuild.trust.content import check_content
from trtbuild.trust.policy import DEVELOPER
from trtbuild.trust.refusal import SHOWN_DIGITS, refusal

if TYPE_CHECKING:
    from trtbuild.backends.session import Attached, SessionOptions
    from trtbuild.store import Record, Store
    from trtbuild.trust.candidate import Admission, Pin
    from trtbuild.trust.policy import Policy

_LOG = logging.getLogger("trtbuild.trust")
_ONNX_START = b"\x08"
"""The tag of ModelProto.ir_version, which serializers write first."""


class Terms(Value, frozen=True, kw_only=True):
    """Under which policy and lockfile an engine is loaded; both are paths.

    An empty ``policy`` is the one in force (:func:`trust_files.policy_name`); an empty ``lock``
    is none.
    """

    policy: str = ""
    lock: str = ""


DEFAULT_TERMS = Terms()


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """An engine that may be loaded, its bytes and what it needs in this process's memory."""

    manifest: Manifest
    admission: Admission
    data: bytes
    attached: Attached


def admit(store: Store, name: str, terms: Terms, options: SessionOptions = DEFAULT) -> Admitted:
    """Return the engine that ``name`` means, after every check.

    With a lockfile ``name`` may be a model's name: then it is the engine that is pinned for a
    target which runs here.

    Raises:
        UsageError: nothing, or more than one engine, has this name.
        MissingBackendError: the backend's runtime is not installed.
        TrustError: a check refuses it.
        StoreError: the store cannot be read.
    """
    policy_name = trust_files.policy_name(terms.policy)
    policy = trust_files.load_policy(policy_name)
    record, pin = _found(store, name, terms.lock)
    manifest = record.read(Manifest)
    admission = judge(store, record, pin, policy)
    preflight(manifest, options)
    data = _verified_bytes(store, record, manifest, host_code=policy.host_code)
    beside = attached(store, manifest)
    if policy.canary:
        canary.require(manifest, data, policy.canary_seconds, options, beside)
    if admission.signed:
        trust_files.remember(admission.place, admission.seq)
    elif policy_name == DEVELOPER:
        _warn_once()
    return Admitted(manifest=manifest, admission=admission, data=data, attached=beside)


def judge(store: Store, record: Record, pin: Pin | None, policy: Policy) -> Admission:
    """Return what was signed of a stored engine, if ``policy`` lets it be loaded.

    Raises:
        TrustError: it does not.
        StoreError: the store cannot be read.
    """
    manifest = record.read(Manifest)
    candidate = candidate_of(store, record)
    seen = trust_files.load_memory().releases if policy.keys else {}
    envelopes = statements(store, manifest.sha256)
    situation = Situation(
        policy=policy,
        now=datetime.now(timezone.utc),
        seen=seen,
        pin=pin,
        damaged=damaged_statements(store, manifest.sha256),
    )
    return decide(candidate, envelopes, situation)


def candidate_of(store: Store, record: Record) -> Candidate:
    """Return what the store says of an engine.

    Raises:
        TrustError: T08, the parts of its record do not belong together.
    """
    manifest = record.read(Manifest)
    if manifest.key != record.key or record.blob("engine").sha256 != manifest.sha256:
        raise refusal(
            "T08",
            f"engine record {record.key[:SHOWN_DIGITS]}: its manifest is that of another "
            f"engine ({manifest.key[:SHOWN_DIGITS]})",
            "a manifest of its own key and bytes",
            "The store was tampered with: build the engine again in another store",
        )
    return Candidate(
        sha256=manifest.sha256,
        key=record.key,
        manifest_sha256=hashlib.sha256(record.value).hexdigest(),
        preimage=manifest.preimage,
        built_here=was_built_here(store, manifest.sha256),
    )


def allow_measuring(store: Store, manifest: Manifest) -> None:
    """Refuse to run, for a measurement, an engine that came from elsewhere untrusted.

    What this store built itself may be measured before anybody signed it.

    Raises:
        TrustError: as :func:`judge`.
    """
    if was_built_here(store, manifest.sha256):
        return
    policy = trust_files.load_policy(trust_files.policy_name(""))
    judge(store, find_engine(store, manifest.key), None, policy)


def _found(store: Store, name: str, lock: str) -> tuple[Record, Pin | None]:
    """Return the record that is meant, and its pin where there is a lockfile."""
    if not lock:
        return find_engine(store, name), None
    pins = trust_files.load_lock(Path(lock)).pins()
    of_model = [pin for pin in pins if pin.model == name]
    if of_model:
        return _runnable(store, of_model)
    pinned = ", ".join(sorted({pin.model for pin in pins})) or "nothing"
    try:
        record = find_engine(store, name)
    except UsageError as error:
        raise refusal(
            "T02",
            f"lockfile {lock} pins no model {name!r}, and it is no engine either ({error})",
            f"a model that is pinned: {pinned}",
            "Correct the name, or pin an engine of that model: trtbuild lock ENGINE",
        ) from error
    sha256 = record.read(Manifest).sha256
    for pin in pins:
        if pin.engine == sha256:
            return record, pin
    raise refusal(
        "T02",
        f"lockfile {lock} does not pin engine {sha256[:SHOWN_DIGITS]}",
        f"one of {pinned}",
        f"Load a model that it pins by name, or pin this engine: trtbuild lock {name}",
    )


def _runnable(store: Store, pins: list[Pin]) -> tuple[Record, Pin]:
    """Return the first engine among a model's pins that is for this machine."""
    reasons = []
    for pin in pins:
        record = find_engine(store, pin.engine)
        target = record.read(Manifest).preimage.target
        reason = runtime(target.backend).cannot_run(target)
        if not reason:
            return record, pin
        reasons.append(f"{target}: {reason}")
    message = f"no engine that is pinned for {pins[0].model!r} runs here: {'; '.join(reasons)}"
    raise TrustError(message, "T12")


def _verified_bytes(
    store: Store, record: Record, manifest: Manifest, *, host_code: bool
) -> bytes:
    """Return the engine's bytes, hashed in memory and looked at from the outside."""
    label = f"engine {manifest.sha256[:SHOWN_DIGITS]}"
    blob = record.blob("engine")
    try:
        data = store.read(manifest.sha256, blob.bytes)
    except BlobLostError as error:
        raise refusal(
            "T13",
            f"{label}: its bytes are lost or were damaged ({error.reason or error})",
            "the bytes that were signed",
            f"Bring them again: trtbuild cache pull {manifest.sha256[:SHOWN_DIGITS]} --from "
            f"URI; or run trtbuild engine RECIPE again where it was built",
        ) from error
    if not len(data) == blob.bytes == manifest.bytes:
        raise refusal(
            "T13",
            f"{label} has {len(data)} bytes",
            f"the {manifest.bytes} of its manifest",
            "Build or pull it again",
        )
    allowed = host_code and _brings_code(manifest)
    check_content(data, label, _header_problem(manifest, data), host_code=allowed)
    return data


def _brings_code(manifest: Manifest) -> bool:
    """Tell whether an engine was built to hold a runtime, which is a program."""
    return bool(dict(manifest.preimage.settings).get("version_compatible"))


def _header_problem(manifest: Manifest, data: bytes) -> str:
    target = manifest.preimage.target
    if target.backend.startswith("tensorrt"):
        # What surrounds a version-compatible engine is not known, nor whose version it tells.
        version = "" if _brings_code(manifest) else manifest.preimage.fingerprint.version
        return trt_plan.problem(data, target, version)
    if target.backend == "onnxruntime" and not data.startswith(_ONNX_START):
        return "it does not start as an ONNX file does"
    return ""


@functools.cache
def _warn_once() -> None:
    _LOG.warning(
        "an unsigned engine is loaded: no policy is set, so engines that this store built "
        "itself are allowed. For production: trtbuild keys trust, and %s",
        trust_files.POLICY_VARIABLE,
    )
