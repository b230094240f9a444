"""What is signed of an engine: three in-toto statements v1 about its bytes and its manifest.

* provenance (SLSA v1): what it was built of, for what, with what, and by whom;
* gates: what was measured of it, and which gates it passed;
* release: that it may be served as a model on a target, from when to when, and in which order
  (``seq``). It names the digests of the two others, so that no statement of one release can be
  combined with those of another.

A builder signs all three; who promotes an engine signs a new release.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta, timezone
from typing import Annotated, Literal, get_args

import msgspec

from trtbuild.canonical import encode
from trtbuild.engine import EngineKey, Value
from trtbuild.trust import strict_json
from trtbuild.trust.dsse import Sha256
from trtbuild.trust.refusal import refusal

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
BUILD_TYPE = "urn:trtbuild:build:v1"
ENGINE, MANIFEST = "engine", "manifest"

_SLSA = Literal["https://slsa.dev/provenance/v1"]
_GATES = Literal["urn:trtbuild:gates:v1"]
_RELEASE = Literal["urn:trtbuild:release:v1"]
_SECOND = "%Y-%m-%dT%H:%M:%SZ"

# A "$" of Python matches before a line break at the end, too.
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,128}$(?!\n)", max_length=128)]
TargetName = Annotated[
    str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,32}:[A-Za-z0-9._+-]{1,128}$(?!\n)", max_length=161)
]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Second = Annotated[
    str,
    msgspec.Meta(pattern=r"^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z$", max_length=20),
]
Sequence = Annotated[int, msgspec.Meta(ge=1, le=strict_json.MAX_INTEGER)]


class Digest(Value, frozen=True, kw_only=True):
    """An in-toto digest set, of which we write and read sha256 alone."""

    sha256: Sha256


class Subject(Value, frozen=True, kw_only=True):
    """What a statement is about: the engine's bytes, or its manifest's canonical JSON."""

    name: Literal["engine", "manifest"]
    digest: Digest


class Dependency(Value, frozen=True, kw_only=True):
    """Something that went into a build. ``stage`` digests are keys of our own stages."""

    name: Text
    digest: dict[Literal["sha256", "gitCommit", "trtbuildStage", "trtbuildFiles"], Text]


class Parameters(Value, frozen=True, kw_only=True):
    """What was asked for: the model's name, the target, and the key with its pre-image."""

    model: Name
    target: TargetName
    key: Sha256
    preimage: EngineKey


class Definition(Value, frozen=True, kw_only=True, rename="camel"):
    """SLSA's build definition; ``external_parameters`` is checked field by field later."""

    build_type: Text
    external_parameters: dict[str, object]
    internal_parameters: dict[str, Text]
    resolved_dependencies: tuple[Dependency, ...]


class Builder(Value, frozen=True, kw_only=True):
    """Who built: an id that a policy lists, and the version of each tool."""

    id: Text
    version: dict[str, Text]


class Metadata(Value, frozen=True, kw_only=True, rename="camel"):
    """Which run it was (a CI job's address, empty elsewhere), and when it ended."""

    invocation_id: Text
    finished_on: Second


class RunDetails(Value, frozen=True, kw_only=True):
    """SLSA's details of a run."""

    builder: Builder
    metadata: Metadata


class Provenance(Value, frozen=True, kw_only=True, rename="camel"):
    """The predicate of SLSA provenance v1."""

    build_definition: Definition
    run_details: RunDetails


class GateOutcome(Value, frozen=True, kw_only=True):
    """One gate; a skipped one was not judged."""

    name: Name
    passed: bool
    skipped: bool


class Metric(Value, frozen=True, kw_only=True):
    """The task metric of the framework and of the engine; ``drop`` is positive when worse."""

    name: Text
    reference: float
    engine: float | None
    drop: float | None


class Gates(Value, frozen=True, kw_only=True, rename="camel"):
    """What was measured. ``report`` is the digest of the verification in the run's report.

    ``evaluation`` is the digest of the data, ``measured_on`` as in a report.
    """

    report: Sha256
    evaluation: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$", max_length=64)]
    measured_on: Literal["device", "twin"]
    passed: bool
    gates: tuple[GateOutcome, ...]
    metrics: tuple[Metric, ...]


class Release(Value, frozen=True, kw_only=True):
    """That the engine may be served; ``provenance`` and ``gates`` are digests of payloads."""

    model: Name
    target: TargetName
    key: Sha256
    seq: Sequence
    created: Second
    expires: Second
    provenance: Sha256
    gates: Sha256


class _Statement(Value, frozen=True, kw_only=True, rename={"type_": "_type"}):
    type_: Literal["https://in-toto.io/Statement/v1"]
    subject: tuple[Subject, ...]

    def digest_of(self, name: str) -> str:
        """Return the digest of the subject ``name``; a reader made sure that it is there."""
        return next(each.digest.sha256 for each in self.subject if each.name == name)


class ProvenanceStatement(
    _Statement, frozen=True, kw_only=True, rename={"predicate_type": "predicateType"}
):
    """How the engine came to be."""

    predicate_type: _SLSA
    predicate: Provenance


class GatesStatement(
    _Statement, frozen=True, kw_only=True, rename={"predicate_type": "predicateType"}
):
    """What the engine was worth."""

    predicate_type: _GATES
    predicate: Gates


class ReleaseStatement(
    _Statement, frozen=True, kw_only=True, rename={"predicate_type": "predicateType"}
):
    """That the engine may be served."""

    predicate_type: _RELEASE
    predicate: Release


Statement = ProvenanceStatement | GatesStatement | ReleaseStatement
Predicate = Provenance | Gates | Release

_SHAPES: dict[str, type[Statement]] = {
    get_args(_SLSA)[0]: ProvenanceStatement,
    get_args(_GATES)[0]: GatesStatement,
    get_args(_RELEASE)[0]: ReleaseStatement,
}
_TYPES: dict[type, str] = {
    Provenance: get_args(_SLSA)[0],
    Gates: get_args(_GATES)[0],
    Release: get_args(_RELEASE)[0],
}


def payload_of(engine_sha256: str, manifest_sha256: str, predicate: Predicate) -> bytes:
    """Return the statement about an engine, as the bytes that are signed."""
    digests = {ENGINE: engine_sha256, MANIFEST: manifest_sha256}
    return encode(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": n, "digest": {"sha256": d}} for n, d in digests.items()],
            "predicateType": _TYPES[type(predicate)],
            "predicate": predicate,
        }
    )


def read_statement(payload: bytes) -> Statement:
    """Return the statement in a payload whose signature was found to hold.

    Raises:
        TrustError: T05, it is not exactly a statement of a known type.
    """
    try:
        value = strict_json.parse(payload)
        kind = value.get("predicateType") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in _SHAPES:
            raise _malformed(f"its predicate type is {str(kind)[:64]!r}")
        found = strict_json.read(value, _SHAPES[kind])
        _check_times(found)
    except ValueError as error:
        raise _malformed(str(error)) from error
    if sorted(each.name for each in found.subject) != [ENGINE, MANIFEST]:
        raise _malformed("its subjects are not one engine and one manifest")
    return found


def payload_digest(payload: bytes) -> str:
    """Return the digest by which a release names another statement."""
    return hashlib.sha256(payload).hexdigest()


def second(moment: datetime) -> str:
    """Return a time as statements have it, in UTC."""
    return moment.astimezone(timezone.utc).strftime(_SECOND)


def moment(text: str) -> datetime:
    """Return the time in a statement; a ValueError says that there is no such time."""
    return datetime.strptime(text, _SECOND).replace(tzinfo=timezone.utc)


def days_after(text: str, days: int) -> str:
    """Return the time ``days`` after ``text``."""
    return second(moment(text) + timedelta(days=days))


def _check_times(statement: Statement) -> None:
    predicate = statement.predicate
    if isinstance(predicate, Release):
        moment(predicate.created)
        moment(predicate.expires)
    if isinstance(predicate, Provenance):
        moment(predicate.run_details.metadata.finished_on)


def _malformed(problem: str) -> Exception:
    return refusal(
        "T05",
        f"a signed statement cannot be used, {problem}",
        "an in-toto statement v1 with SLSA provenance v1, or of trtbuild's gates or release",
        "Sign the engine again with this version of trtbuild: trtbuild promote ENGINE",
    )
