"""The checks before a load, in their order; the first that fails refuses the engine.

They are those of the threat model: an attacker may write to every store and mirror, replay
what was signed once, and combine parts of what was signed; he has no trusted key. What is
compared is never what a file says of itself alone, but what was signed with what is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from trtbuild.errors import TrustError
from trtbuild.trust.candidate import Admission
from trtbuild.trust.claims import (
    check_count,
    check_gates,
    check_provenance,
    check_settings,
    check_version,
    other_part,
)
from trtbuild.trust.evidence import gather
from trtbuild.trust.keys import public_key
from trtbuild.trust.policy import DEVELOPER_POLICY, Rule
from trtbuild.trust.refusal import SHOWN_DIGITS, refusal
from trtbuild.trust.statements import ENGINE, MANIFEST, moment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from trtbuild.trust.candidate import Candidate, Pin, Situation
    from trtbuild.trust.evidence import Evidence, Signed
    from trtbuild.trust.policy import Policy
    from trtbuild.trust.statements import Release

_SKEW = timedelta(minutes=10)
"""How far a builder's clock may be ahead of ours."""

_SLACK = timedelta(hours=1)
"""How far a release's number may be from its time: two clocks, and numbers that were taken."""

_NO_RULE = Rule(names=())
"""What holds for unsigned engines of models that no table of the policy is about."""


def decide(candidate: Candidate, envelopes: Sequence[bytes], situation: Situation) -> Admission:
    """Return why the engine may be loaded.

    Of several releases the newest that passes every check counts; one that is pinned as an
    unsigned engine is admitted as that or not at all.

    Raises:
        TrustError: the first check that failed, for the release that passed most of them.
    """
    check_engine(candidate, situation)
    if situation.pin is not None and not situation.pin.seq:
        return _pinned_unsigned(candidate, situation)
    evidence = gather(envelopes, situation.policy)
    refused = list(evidence.refused)
    failed: list[Failure] = []
    for found in evidence.releases():
        outcome = examine(candidate, evidence, found, situation)
        if isinstance(outcome, Admission):
            ignored = tuple(str(each) for each in (*(each.reason for each in failed), *refused))
            return msgspec.structs.replace(outcome, ignored=ignored)
        failed.append(outcome)
    # A revoked key explains what is missing; else the best release's own reason comes first: a
    # newer one that waits for its promotion does not explain why the promoted one is refused.
    refused.sort(key=lambda error: error.code, reverse=True)
    revoked = [error for error in refused if error.code == "T16"]
    others = (error for error in refused if error.code != "T16")
    reasons = [*revoked, *(each.reason for each in best_first(failed)), *others]
    if evidence.has_statements:
        reasons.append(_no_release(candidate))
    return _unsigned(candidate, situation, reasons)


def check_engine(candidate: Candidate, situation: Situation) -> None:
    """Refuse an engine whatever was signed: revoked, not pinned, or in a record not its own.

    Raises:
        TrustError: T16, T02 or T08.
    """
    _check_not_revoked(candidate, situation.policy)
    _check_pin(candidate, situation.pin)
    _check_record(candidate)


def _pinned_unsigned(candidate: Candidate, situation: Situation) -> Admission:
    """Return the admission of an engine that is pinned with the number 0, for no release."""
    if situation.policy.unsigned == "local" and candidate.built_here:
        return _local(candidate, situation, [])
    raise refusal(
        "T02",
        f"{candidate.label} is pinned as unsigned (seq = 0), and the policy does not load it "
        f"unsigned",
        "the number of its release",
        "Take the lockfile from version control again, or pin anew: trtbuild lock ENGINE",
    )


def _unsigned(
    candidate: Candidate, situation: Situation, reasons: list[TrustError]
) -> Admission:
    """Return the admission of an engine without a good release, where the policy has one."""
    local = situation.policy.unsigned == "local"
    pinned_release = situation.pin is not None and situation.pin.seq > 0
    if local and candidate.built_here and not pinned_release:
        return _local(candidate, situation, reasons)
    if reasons:
        raise reasons[0]
    where = "was not built by this user on this machine" if local else "carries no signature"
    if situation.damaged:
        where = f"{situation.damaged} files of statements beside it are damaged"
    raise refusal(
        "T17",
        f"{candidate.label} is unsigned and {where}",
        "a release signed by a key of the policy",
        "Pull it where it is signed (trtbuild cache pull), let whoever built it sign it by "
        "running trtbuild engine RECIPE again with a key (trtbuild keys generate NAME --use), "
        + (
            "or build it here into a new --store"
            if local
            else 'or allow what is built on this machine: unsigned = "local" in the policy'
        ),
    )


def _local(candidate: Candidate, situation: Situation, reasons: list[TrustError]) -> Admission:
    """Return the admission of an unsigned engine that was built here.

    Raises:
        TrustError: T08, another model was asked for; T11 or T12, what it carries or its
            library's version is not allowed.
    """
    wanted = situation.wanted(candidate)
    if wanted != candidate.model:
        raise _other_model(candidate, "is unsigned and was built", [candidate.model], wanted)
    if (
        situation.policy != DEVELOPER_POLICY
    ):  # without a file, who built it named what it carries
        check_settings(candidate, situation.policy)
    check_version(candidate, situation.policy.rule(candidate.model) or _NO_RULE)
    return Admission(
        signed=False,
        target=str(candidate.preimage.target),
        ignored=tuple(str(each) for each in reasons),
    )


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a release does not count, and how many checks it had passed before."""

    passed: int
    reason: TrustError


def best_first(failed: list[Failure]) -> list[Failure]:
    """Return the failures of releases, the one that passed most checks first, then the newest.

    ``failed`` begins with the newest.
    """
    return sorted(failed, key=lambda each: -each.passed)


def examine(
    candidate: Candidate,
    evidence: Evidence,
    found: tuple[Release, Signed],
    situation: Situation,
) -> Admission | Failure:
    """Return why the engine may be loaded by this release of it, or why not."""
    release, signed = found
    rule = situation.policy.rule(release.model)
    if rule is None:
        return Failure(passed=0, reason=_no_rule(release.model))
    provenance = evidence.provenance(release.provenance)
    gates = evidence.gates(release.gates)
    checks: tuple[Callable[[], None], ...] = (
        lambda: _check_signers(candidate, signed, release.model, rule),
        lambda: _check_rollback(candidate, release, situation),
        lambda: _check_fresh(candidate, release, rule, situation.now),
        lambda: _check_number(candidate, release, situation.now),
        lambda: _check_model(candidate, release, evidence, situation),
        lambda: _check_binding(candidate, found),
        lambda: check_provenance(candidate, release, provenance, rule),
        lambda: check_gates(candidate, release, gates, rule),
        lambda: check_settings(candidate, situation.policy),
        lambda: check_version(candidate, rule),
    )
    for passed, check in enumerate(checks, 1):
        try:
            check()
        except TrustError as error:  # noqa: PERF203  the first that fails ends it
            return Failure(passed=passed, reason=error)
    return Admission(
        signed=True,
        model=release.model,
        target=release.target,
        precision=candidate.precision,
        seq=release.seq,
        expires=release.expires,
        builders=provenance[1].names("builder", release.model) if provenance else (),
        promoters=signed.names("promoter", release.model),
        keys=tuple(
            public_key(each.public).keyid
            for each in signed.of_role("promoter", release.model)
            or signed.of_role("builder", release.model)
        ),
    )


def _no_release(candidate: Candidate) -> TrustError:
    return refusal(
        "T04",
        f"{candidate.label}: trusted keys signed statements about it, but no release of it",
        "a release",
        "Pull or sign it again: trtbuild promote ENGINE",
    )


# T16


def _check_not_revoked(candidate: Candidate, policy: Policy) -> None:
    reasons = policy.revoked_engines()
    if candidate.sha256 in reasons:
        reason = reasons[candidate.sha256]
        raise refusal(
            "T16",
            f"{candidate.label} was revoked{f' ({reason})' if reason else ''}",
            "an engine that the policy does not revoke",
            "Serve another release",
        )


# T02


def _check_pin(candidate: Candidate, pin: Pin | None) -> None:
    if pin is None:
        return
    if pin.engine != candidate.sha256:
        raise refusal(
            "T02",
            f"{candidate.label} is not what the lockfile pins for {pin.model!r}",
            f"engine {pin.engine[:SHOWN_DIGITS]}",
            "Load that one, or pin this one after looking at it: trtbuild lock ENGINE",
        )
    if pin.target != str(candidate.preimage.target):
        raise refusal(
            "T02",
            f"{candidate.label} is pinned for {pin.target} as {pin.model!r}",
            f"an engine for {pin.target}",
            "Take the lockfile from version control again, or pin anew: trtbuild lock ENGINE",
        )


# T08


def _check_record(candidate: Candidate) -> None:
    key = candidate.preimage.digest
    if key != candidate.key:
        raise refusal(
            "T08",
            f"{candidate.label}: its record stands under the key "
            f"{candidate.key[:SHOWN_DIGITS]} and describes {key[:SHOWN_DIGITS]}",
            "a record under the key of its own pre-image",
            "The store was tampered with: build the engine again in another store",
        )


def _check_model(
    candidate: Candidate, release: Release, evidence: Evidence, situation: Situation
) -> None:
    wanted = situation.wanted(candidate)
    if release.model != wanted:
        raise _other_model(candidate, "was signed", evidence.models(), wanted)


def _other_model(
    candidate: Candidate, problem: str, names: Sequence[str], wanted: str
) -> TrustError:
    known = " and as ".join(repr(each) for each in names)
    return refusal(
        "T08",
        f"{candidate.label} {problem} as {known}",
        f"the model {wanted!r}",
        f"To serve it as {names[0]!r}, say so: trtbuild.load(..., model={names[0]!r}), or "
        f"trtbuild lock ENGINE --model {names[0]}. Engines of other models are in 'trtbuild "
        f"cache ls'",
    )


def _check_binding(candidate: Candidate, found: tuple[Release, Signed]) -> None:
    release, signed = found
    statement = signed.statement
    pairs = (
        ("engine", statement.digest_of(ENGINE), candidate.sha256),
        ("manifest", statement.digest_of(MANIFEST), candidate.manifest_sha256),
        ("key", release.key, candidate.key),
        ("target", release.target, str(candidate.preimage.target)),
    )
    for name, was_signed, is_here in pairs:
        if was_signed != is_here:
            raise other_part(candidate, name, was_signed, is_here)


# T04


def _no_rule(model: str) -> TrustError:
    return refusal(
        "T04",
        f"the policy has no [[models]] table whose names fit {model!r}",
        "one that says who must sign it",
        "Add one, or ask for another model",
    )


def _check_signers(candidate: Candidate, signed: Signed, model: str, rule: Rule) -> None:
    """Refuse a release that too few promoters signed, where the rule asks for promoters.

    Elsewhere builders are enough; provenance and gates need them in any case.
    """
    if rule.promoters:
        check_count(candidate, "release", ("promoter", rule.promoters), signed, model)
    elif not signed.names("promoter", model):
        check_count(candidate, "release", ("builder", rule.builders), signed, model)


# T06, T07


def _check_rollback(candidate: Candidate, release: Release, situation: Situation) -> None:
    pin = situation.pin
    place = f"{release.model}/{release.target}"
    # The first is what versions remembered that did not tell precisions apart.
    seen = [situation.seen.get(f"{place}{rest}", 0) for rest in ("", f"/{candidate.precision}")]
    last = max(*seen, pin.seq if pin else 0)
    if release.seq < last:
        raise refusal(
            "T06",
            f"{candidate.label}: release {release.seq} of {release.model!r} is older than "
            f"release {last}, which was loaded or pinned before",
            f"release {last} or a later one",
            "To go back on purpose, promote the older engine anew: trtbuild promote ENGINE. If "
            "they are two models, give their recipes two names",
        )


def _check_fresh(candidate: Candidate, release: Release, rule: Rule, now: datetime) -> None:
    created, expires = moment(release.created), moment(release.expires)
    if created > now + _SKEW:
        problem, expected = f"is from the future ({release.created})", "a release of the past"
    elif expires <= now:
        problem, expected = f"expired at {release.expires}", "one that is still valid"
    elif rule.max_age_days is not None and now - created > timedelta(days=rule.max_age_days):
        problem = f"is of {release.created}"
        expected = f"one of the last {rule.max_age_days} days"
    else:
        return
    raise refusal(
        "T07",
        f"{candidate.label}: release {release.seq} of {release.model!r} {problem}",
        expected,
        "Check this machine's clock; if it is right, let the engine be promoted anew: "
        "trtbuild promote ENGINE",
    )


def is_plausible(release: Release, now: datetime) -> bool:
    """Tell whether a release's number is the time at which it was made, more or less.

    A number is remembered and never goes down: one from the far future would be the last.
    """
    made = moment(release.created)
    times = (made - _SLACK, min(made, now) + _SLACK)
    return times[0].timestamp() <= release.seq <= times[1].timestamp()


def _check_number(candidate: Candidate, release: Release, now: datetime) -> None:
    if not is_plausible(release, now):
        raise refusal(
            "T07",
            f"{candidate.label}: release {release.seq} of {release.model!r} was made at "
            f"{release.created}, which its number does not say",
            "the Unix time of its making, within an hour",
            "Check the clock of whoever signed it, and let it be signed anew",
        )
