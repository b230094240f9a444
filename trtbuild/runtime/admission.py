"""Decide whether an engine may be loaded, and hand out its bytes only if it may.

The order is the point: policy, lockfile, signatures over raw bytes, what was signed, this
machine, the bytes themselves, a first load in a child process. What any check refuses, no
runtime has seen. The memory of what was loaded is written when it is (:func:`remember`).
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.backends import runtime, trt_plan, trt_settings
from trtbuild.backends.session import DEFAULT, SessionOptions
from trtbuild.engine import Manifest, Value
from trtbuild.errors import TrustError, UsageError
from trtbuild.recipe import recipe_name
from trtbuild.runtime import canary, trust_files
from trtbuild.runtime.attached import attached
from trtbuild.runtime.machine import preflight
from trtbuild.runtime.made_here import was_made_here
from trtbuild.store import BlobLostError, find_engine
from trtbuild.store.statements import damaged_statements, statements
from trtbuild.trust.candidate import Candidate, Situation
from trtbuild.trust.checks import check_engine, decide
from trtbuild.trust.content import check_content
from trtbuild.trust.memory import Loaded, Memory
from trtbuild.trust.policy import DEVELOPER
from trtbuild.trust.refusal import SHOWN_DIGITS, refusal

if TYPE_CHECKING:
    from trtbuild.backends.session import Attached
    from trtbuild.store import Record, Store
    from trtbuild.trust.candidate import Admission, Pin
    from trtbuild.trust.policy import Policy

_LOG = logging.getLogger("trtbuild.trust")
_ONNX_START = b"\x08"
"""The tag of ModelProto.ir_version, which serializers write first."""


class Terms(Value, frozen=True, kw_only=True):
    """Under which policy and lockfile an engine is loaded, both paths, and as which model.

    An empty ``policy`` is the one in force (:func:`trust_files.policy_name`); an empty ``lock``
    is none. An empty ``model`` is the lockfile's, or the name that the engine was built under.
    """

    policy: str = ""
    lock: str = ""
    model: str = ""


DEFAULT_TERMS = Terms()


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """An engine that may be loaded, its bytes and what it needs in this process's memory.

    ``policy`` is what let it in, ``policy_name`` what messages call it.
    """

    manifest: Manifest
    admission: Admission
    data: bytes
    attached: Attached
    policy: Policy
    policy_name: str


@dataclass(frozen=True, kw_only=True)
class Measurable:
    """An engine that may be run for a measurement: its bytes, and how it is opened."""

    data: bytes
    attached: Attached
    options: SessionOptions


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
    try:
        record, pin = _found(store, name, terms)
    except BlobLostError as error:
        raise TrustError(str(error), "T13") from error
    manifest = record.read(Manifest)
    admission = judge(store, record, pin, policy, terms.model)
    preflight(manifest, options)
    own = policy_name == DEVELOPER and not admission.signed and options.allow_host_code
    data = _verified_bytes(store, record, manifest, host_code=policy.host_code or own)
    beside = attached(store, manifest)
    if policy.canary:
        canary.require(manifest, data, policy.canary_seconds, options, beside)
    return Admitted(
        manifest=manifest,
        admission=admission,
        data=data,
        attached=beside,
        policy=policy,
        policy_name=policy_name,
    )


def remember(admitted: Admitted) -> None:
    """Remember the release of an engine that was loaded, or warn that nobody signed it.

    Not before: a release that this machine cannot load would forbid the one before it.

    Raises:
        TrustError: T18, it cannot be remembered.
    """
    admission, policy = admitted.admission, admitted.policy
    if admission.signed:
        loaded = Loaded(seq=admission.seq, keys=admission.keys)
        trust_files.remember(admission.place, loaded, policy.revoked_keys())
        return
    _LOG.warning(
        "engine %s for %s is loaded UNSIGNED: the policy %s allows what you built on this "
        "machine. For production: trtbuild keys trust, and %s",
        admitted.manifest.sha256[:SHOWN_DIGITS],
        admission.target,
        admitted.policy_name,
        trust_files.POLICY_VARIABLE,
    )


def judge(
    store: Store, record: Record, pin: Pin | None, policy: Policy, model: str = ""
) -> Admission:
    """Return what was signed of a stored engine, if ``policy`` lets it be loaded as ``model``.

    Raises:
        TrustError: it does not.
        StoreError: the store cannot be read.
    """
    manifest = record.read(Manifest)
    candidate = candidate_of(record)
    memory = trust_files.load_memory() if policy.keys else Memory()
    envelopes = statements(store, manifest.sha256)
    situation = Situation(
        policy=policy,
        now=_now(),
        seen=memory.without(policy.revoked_keys()).numbers(),
        pin=pin,
        model=model,
        damaged=damaged_statements(store, manifest.sha256),
    )
    return decide(candidate, envelopes, situation)


def candidate_of(record: Record) -> Candidate:
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
        model=recipe_name(manifest.recipe),
        precision=manifest.precision_requested,
        built_here=was_made_here(record),
    )


def admit_measuring(store: Store, manifest: Manifest) -> Measurable:
    """Return an engine that may be run for a measurement, before anybody signed it.

    What was built here is not loaded in a child process first, its builder was one; it may
    bring the runtime that it was asked to. What came from elsewhere passes every check of a
    load but the memory of releases, which is of those that served.

    Raises:
        BlobLostError: its record or bytes were lost meanwhile.
        TrustError: a check refuses it.
        MissingBackendError: the backend's runtime is not installed.
    """
    record = store.get("engine", manifest.key, Manifest)
    if record is None or record.read(Manifest) != manifest:
        message = f"engine {manifest.key[:SHOWN_DIGITS]} was lost from the store {store.root}"
        raise BlobLostError(message)
    policy = trust_files.load_policy(trust_files.policy_name(""))
    candidate = candidate_of(record)
    brings = trt_settings.brings_code(dict(manifest.preimage.settings))
    allowed = policy.host_code or (candidate.built_here and brings)
    options = SessionOptions(allow_host_code=allowed and brings)
    if candidate.built_here:
        check_engine(candidate, Situation(policy=policy, now=_now(), seen={}))
    else:
        judge(store, record, None, policy)
        preflight(manifest, options)
    data = store.read(manifest.sha256, record.blob("engine").bytes)
    _check_bytes(record, manifest, data, host_code=allowed)
    beside = attached(store, manifest)
    if policy.canary and not candidate.built_here:
        canary.require(manifest, data, policy.canary_seconds, options, beside)
    return Measurable(data=data, attached=beside, options=options)


def _found(store: Store, name: str, terms: Terms) -> tuple[Record, Pin | None]:
    """Return the record that is meant, and its pin where there is a lockfile."""
    lock = terms.lock
    if not lock:
        return find_engine(store, name), None
    pins = [
        pin
        for pin in trust_files.load_lock(Path(lock)).pins()
        if terms.model in ("", pin.model)
    ]
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
        preimage = record.read(Manifest).preimage
        target = preimage.target
        reason = runtime(target.backend).cannot_run(target, preimage.settings)
        if not reason:
            return record, pin
        reasons.append(f"{target}: {reason}")
    message = f"no engine that is pinned for {pins[0].model!r} runs here: {'; '.join(reasons)}"
    raise TrustError(message, "T12")


def _verified_bytes(
    store: Store, record: Record, manifest: Manifest, *, host_code: bool
) -> bytes:
    """Return the engine's bytes, hashed in memory and looked at from the outside."""
    try:
        data = store.read(manifest.sha256, record.blob("engine").bytes)
    except BlobLostError as error:
        raise refusal(
            "T13",
            f"engine {manifest.sha256[:SHOWN_DIGITS]}: its bytes are lost or were damaged "
            f"({error.reason or error})",
            "the bytes that were signed",
            f"Bring them again: trtbuild cache pull {manifest.sha256[:SHOWN_DIGITS]} --from "
            f"URI; or run trtbuild engine RECIPE again where it was built",
        ) from error
    _check_bytes(record, manifest, data, host_code=host_code)
    return data


def _check_bytes(record: Record, manifest: Manifest, data: bytes, *, host_code: bool) -> None:
    """Refuse (T13, T14) bytes of another size, that are no engine, or that hide a program."""
    label = f"engine {manifest.sha256[:SHOWN_DIGITS]}"
    if not len(data) == record.blob("engine").bytes == manifest.bytes:
        raise refusal(
            "T13",
            f"{label} has {len(data)} bytes",
            f"the {manifest.bytes} of its manifest",
            "Build or pull it again",
        )
    allowed = host_code and trt_settings.brings_code(dict(manifest.preimage.settings))
    check_content(data, label, _header_problem(manifest, data), host_code=allowed)


def _header_problem(manifest: Manifest, data: bytes) -> str:
    target = manifest.preimage.target
    if target.backend.startswith("tensorrt"):
        # What surrounds a version-compatible engine is not known, nor whose version it tells.
        key = manifest.preimage
        compatible = bool(dict(key.settings).get("version_compatible"))
        version = "" if compatible else key.fingerprint.version
        return trt_plan.problem(data, target, version)
    if target.backend == "onnxruntime" and not data.startswith(_ONNX_START):
        return "it does not start as an ONNX file does"
    return ""


def _now() -> datetime:
    return datetime.now(timezone.utc)
