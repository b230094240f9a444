"""Sign the engines of a report.

A builder signs what was built here, if the engine passed its gates as they were measured here:
its provenance, its gates, and a release. What a tier has for a key may be anything: an engine
from elsewhere is signed only where a signature of it is trusted already. An engine that is
signed already is left as it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import msgspec

import trtbuild
from trtbuild.canonical import digest, encode
from trtbuild.engine import Manifest
from trtbuild.errors import TrustError, UsageError
from trtbuild.pipeline import key_files
from trtbuild.pipeline.chosen_key import KEY_VARIABLE
from trtbuild.report.document import Finding, Verification
from trtbuild.runtime import trust_files
from trtbuild.runtime.admission import candidate_of
from trtbuild.store import find_engine
from trtbuild.store.statements import put_statement, statements
from trtbuild.trust import dsse
from trtbuild.trust.candidate import Situation
from trtbuild.trust.checks import check_engine, decide, is_plausible
from trtbuild.trust.evidence import gather
from trtbuild.trust.policy import Policy, Rule, TrustedKey
from trtbuild.trust.statements import (
    BUILD_TYPE,
    Builder,
    Definition,
    Dependency,
    GateOutcome,
    Gates,
    Metadata,
    Metric,
    Name,
    Parameters,
    Provenance,
    Release,
    RunDetails,
    days_after,
    moment,
    payload_digest,
    payload_of,
    second,
)
from trtbuild.trust.strict_json import MAX_INTEGER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trtbuild.report.document import EngineReport, Report
    from trtbuild.store import Store
    from trtbuild.trust.candidate import Candidate
    from trtbuild.trust.keys import PrivateKey

RELEASE_DAYS = 90
"""How long a release is valid, unless whoever signs says otherwise."""

BUILDER_VARIABLE = "TRTBUILD_BUILDER_ID"
_LOCAL_BUILDER = "urn:trtbuild:builder:local"


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Who signs: a key, and how many days the releases that it signs are valid."""

    name: str
    key: PrivateKey
    days: int = RELEASE_DAYS

    def put(self, store: Store, engine_sha256: str, payload: bytes) -> None:
        """Sign a statement and store it beside the engine."""
        put_statement(store, engine_sha256, dsse.seal(payload, (self.key,)))

    def policy(self) -> Policy:
        """Return the policy by which this signer's own statements count."""
        own = TrustedKey(name="own", role="builder", public=self.key.public.text, models=("*",))
        return Policy(schema=1, keys=(own,), models=(Rule(names=("*",)),))


def signer(name: str, days: int = RELEASE_DAYS) -> Signer:
    """Return the signer of a key; raises UsageError where the key cannot be used."""
    return Signer(name=name, key=key_files.load_key(name), days=days)


def check_model(name: str) -> str:
    """Return the name under which engines of a recipe are signed; UsageError if it is none."""
    try:
        return msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"engines of the recipe {name!r} cannot be signed: a model's name has 1 to 128 of "
            f"A-Z a-z 0-9 . _ -. Rename the recipe, or unset {KEY_VARIABLE}"
        ) from error


def sign_report(store: Store, report: Report, by: Signer) -> tuple[Finding, ...]:
    """Sign the engines of a report that passed their gates, each unless it is signed already.

    Returns why engines that passed were left unsigned.

    Raises:
        UsageError: the recipe's name is not one that can be signed.
        TrustError: T01, the policy cannot be used.
        StoreError: the store cannot be written.
    """
    revoked = trust_files.load_policy(trust_files.policy_name("")).revoked_keys()
    if by.key.public.keyid in revoked:
        text = (
            f"nothing was signed: the policy revokes the key {by.name!r}. Sign with another: "
            "trtbuild keys generate NAME --use"
        )
        return (Finding(stage="sign", text=text),)
    found = []
    for engine in report.engines:
        if not engine.verification.passed:
            continue
        try:
            _sign_engine(store, report, engine, by)
        except _UnknownOriginError as error:
            found.append(Finding(stage="sign", text=str(error)))
    return tuple(found)


class _UnknownOriginError(Exception):
    """An engine is not signed, since nobody knows who built it; the text says so."""


def _sign_engine(store: Store, report: Report, engine: EngineReport, by: Signer) -> None:
    record = find_engine(store, engine.key)
    manifest = record.read(Manifest)
    candidate = candidate_of(record)
    model = check_model(report.recipe)
    if manifest.sha256 != engine.sha256:
        raise _UnknownOriginError(
            f"engine {engine.sha256[:12]} was not signed: its key has {candidate.label} now"
        )
    gates = _payload(candidate, _gates(report, engine))
    evidence = gather(statements(store, candidate.sha256), by.policy())
    now = datetime.now(timezone.utc)
    half = now + timedelta(days=by.days / 2)
    releases = [release for release, _ in evidence.releases() if release.model == model]
    if any(
        each.gates == payload_digest(gates) and moment(each.expires) > half for each in releases
    ):
        return
    _check_origin(store, candidate, model, by)
    provenance = _payload(candidate, _provenance(model, report, candidate, manifest))
    release = Release(
        model=model,
        target=str(manifest.preimage.target),
        key=candidate.key,
        seq=next_seq(releases, now),
        created=second(now),
        expires=days_after(second(now), by.days),
        provenance=payload_digest(provenance),
        gates=payload_digest(gates),
    )
    for payload in (provenance, gates, _payload(candidate, release)):
        by.put(store, candidate.sha256, payload)


def _check_origin(store: Store, candidate: Candidate, model: str, by: Signer) -> None:
    """Refuse to sign what was not built here, unless the policy or this key trusts it.

    Raises:
        _UnknownOriginError: neither does, or the engine was revoked.
        TrustError: T01, the policy cannot be used.
    """
    policy = trust_files.load_policy(trust_files.policy_name(""))
    now = datetime.now(timezone.utc)
    reasons = []
    try:
        check_engine(candidate, Situation(policy=policy, now=now, seen={}))
        if candidate.built_here:
            return
        envelopes = statements(store, candidate.sha256)
    except TrustError as error:
        raise _UnknownOriginError(f"{candidate.label} was not signed: {error}") from error
    for rules in (policy, by.policy()):
        situation = Situation(
            policy=msgspec.structs.replace(rules, unsigned="refuse"),
            now=now,
            seen={},
            model=model,
        )
        try:
            decide(candidate, envelopes, situation)
        except TrustError as error:
            reasons.append(str(error))
        else:
            return
    raise _UnknownOriginError(
        f"{candidate.label} was not signed: it was not built by this user on this machine, and "
        f"no signature of it is trusted ({reasons[0]}). Build it into a --store of its own, or "
        f"let whoever built it sign it"
    )


def next_seq(releases: Iterable[Release], now: datetime) -> int:
    """Return the number of a new release: the Unix time, and larger than all of ``releases``.

    So builders that know nothing of each other still number releases in their order. Numbers
    that nobody loads, since they are of another time than their release, do not count.

    Raises:
        UsageError: this machine's clock is off.
    """
    numbers = (each.seq for each in releases if is_plausible(each, now))
    found = max(int(now.timestamp()), *(number + 1 for number in numbers), 1)
    if found > MAX_INTEGER:
        raise UsageError(f"this machine's clock says {second(now)}: set it, then sign again")
    return found


def builder_id(environment: Mapping[str, str]) -> str:
    """Return who builds here: what ``TRTBUILD_BUILDER_ID`` says, or a workflow's address."""
    if given := environment.get(BUILDER_VARIABLE):
        return given
    if workflow := environment.get("GITHUB_WORKFLOW_REF"):
        return f"{environment.get('GITHUB_SERVER_URL', 'https://github.com')}/{workflow}"
    if project := environment.get("CI_PROJECT_URL"):
        return f"{project}//{environment.get('CI_CONFIG_PATH', '.gitlab-ci.yml')}"
    return _LOCAL_BUILDER


def invocation_id(environment: Mapping[str, str]) -> str:
    """Return the address of this CI run, empty elsewhere."""
    if run := environment.get("GITHUB_RUN_ID"):
        server = environment.get("GITHUB_SERVER_URL", "https://github.com")
        return f"{server}/{environment.get('GITHUB_REPOSITORY', '')}/actions/runs/{run}"
    return environment.get("CI_JOB_URL", "")


def _payload(candidate: Candidate, predicate: Provenance | Gates | Release) -> bytes:
    return payload_of(candidate.sha256, candidate.manifest_sha256, predicate)


def _provenance(
    model: str, report: Report, candidate: Candidate, manifest: Manifest
) -> Provenance:
    preimage = manifest.preimage
    parameters = Parameters(
        model=model, target=str(preimage.target), key=candidate.key, preimage=preimage
    )
    return Provenance(
        build_definition=Definition(
            build_type=BUILD_TYPE,
            external_parameters=msgspec.to_builtins(parameters),
            internal_parameters={"precision": manifest.precision_requested},
            resolved_dependencies=_dependencies(report, manifest, os.environ),
        ),
        run_details=RunDetails(
            builder=Builder(
                id=builder_id(os.environ), version={"trtbuild": trtbuild.__version__}
            ),
            metadata=Metadata(
                invocation_id=invocation_id(os.environ), finished_on=manifest.created
            ),
        ),
    )


def _dependencies(
    report: Report, manifest: Manifest, environment: Mapping[str, str]
) -> tuple[Dependency, ...]:
    """Return what went into the engine: the files, the stages, the library, the commit."""
    preimage = manifest.preimage
    library = preimage.fingerprint
    found = [
        Dependency(name="source", digest={"sha256": report.source.digest}),
        Dependency(name="network", digest={"sha256": preimage.network_sha256}),
        Dependency(
            name=f"{library.backend} {library.version}", digest={"trtbuildFiles": library.build}
        ),
    ]
    found += [
        Dependency(name=stage.name, digest={"trtbuildStage": stage.key})
        for stage in report.stages
        if stage.name.startswith(("calibrate", "quantize"))
    ]
    if commit := environment.get("GITHUB_SHA") or environment.get("CI_COMMIT_SHA"):
        found.append(Dependency(name="repository", digest={"gitCommit": commit}))
    return tuple(found)


def _gates(report: Report, engine: EngineReport) -> Gates:
    verification = engine.verification
    metrics = [
        Metric(
            name=name,
            reference=each.reference.value,
            engine=each.engine.value if each.engine else None,
            drop=each.drop.value if each.drop else None,
        )
        for name, each in sorted(verification.metrics.items())
    ]
    # As a stored report has it: an integer in a field of floats is written otherwise.
    stored = msgspec.json.decode(encode(verification), type=Verification)
    return Gates(
        report=digest("verification/v1", stored),
        evaluation=report.evaluation_sha256,
        measured_on=verification.measured_on,
        passed=verification.passed,
        gates=tuple(
            GateOutcome(name=gate.name, passed=gate.passed, skipped=gate.skipped)
            for gate in verification.gates
        ),
        metrics=tuple(metrics),
    )
