"""Promote an engine: sign that it may be served, after checking what its builder signed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import msgspec

from trtbuild.errors import UsageError
from trtbuild.pipeline.signing import next_seq
from trtbuild.runtime.admission import candidate_of
from trtbuild.store import find_engine
from trtbuild.store.statements import statements
from trtbuild.trust.candidate import Situation
from trtbuild.trust.checks import Failure, best_first, check_engine, decide, examine
from trtbuild.trust.evidence import gather
from trtbuild.trust.policy import keyring
from trtbuild.trust.refusal import SHOWN_DIGITS, refusal
from trtbuild.trust.statements import (
    days_after,
    moment,
    payload_of,
    second,
)

if TYPE_CHECKING:
    from trtbuild.pipeline.signing import Signer
    from trtbuild.store import Store
    from trtbuild.trust.candidate import Candidate
    from trtbuild.trust.policy import Policy
    from trtbuild.trust.statements import (
        Release,
    )


_OTHER_KEY = (
    "Nothing was signed: give another --key, or let the policy trust this one: "
    "trtbuild keys trust NAME --role promoter"
)


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What to promote: an engine, under which policy, by whom, as which model.

    An empty ``model`` is the name that the engine was built under. With ``cosign`` the newest
    promotion gets one more signature instead of a new one being made.
    """

    engine: str
    policy: Policy
    by: Signer
    model: str = ""
    cosign: bool = False


def promote(store: Store, promotion: Promotion) -> Release:
    """Sign a release of an engine whose builders the policy trusts; return it.

    What the builder signed is checked first, all but the number and the age of its release, so
    that an older engine can be served again on purpose.

    Raises:
        TrustError: the policy would refuse it for another reason than a missing promotion, or
            the key may not promote it.
        UsageError: nothing, or more than one engine, has this name; or no release to cosign.
        StoreError: the store cannot be written.
    """
    record = find_engine(store, promotion.engine)
    candidate = candidate_of(record)
    envelopes = statements(store, candidate.sha256)
    release, others = _checked(candidate, envelopes, promotion)
    _check_role(promotion, release.model)
    if not promotion.cosign:
        now = datetime.now(timezone.utc)
        release = msgspec.structs.replace(
            release,
            seq=next_seq(others, now),
            created=second(now),
            expires=days_after(second(now), promotion.by.days),
        )
    payload = payload_of(candidate.sha256, candidate.manifest_sha256, release)
    promotion.by.put(store, candidate.sha256, payload)
    return release


def _checked(
    candidate: Candidate, envelopes: tuple[bytes, ...], promotion: Promotion
) -> tuple[Release, list[Release]]:
    """Return the newest release whose statements hold, and all releases of its model.

    To be cosigned it must have been promoted, and still hold today.
    """
    policy = _without_promoters(promotion.policy)
    model = promotion.model or candidate.model
    now = Situation(policy=policy, now=datetime.now(timezone.utc), seen={}, model=model)
    check_engine(candidate, now)
    evidence = gather(envelopes, policy)
    found = [
        (release, signed) for release, signed in evidence.releases() if release.model == model
    ]
    if not evidence.releases():
        decide(candidate, envelopes, now)  # says why
    if not found:
        raise UsageError(
            f"engine {candidate.sha256[:12]} has no release as {model!r}: name a "
            f"model that a builder signed it as"
        )
    others = [release for release, _ in found]
    if promotion.cosign:
        found = [each for each in found if each[1].names("promoter", model)]
    if not found:
        raise UsageError("there is no promotion to cosign: promote without --cosign first")
    failed: list[Failure] = []
    for release, signed in found:
        then = msgspec.structs.replace(now, now=moment(release.created))
        situation = now if promotion.cosign else then
        outcome = examine(candidate, evidence, (release, signed), situation)
        if not isinstance(outcome, Failure):
            return release, others
        failed.append(outcome)
    raise best_first(failed)[0].reason


def _check_role(promotion: Promotion, model: str) -> None:
    """Refuse (T04, T16) to sign with a key whose release the policy would not count.

    Where it asks for no promoters, a builder may sign a later release too.
    """
    policy, keyid = promotion.policy, promotion.by.key.public.keyid
    label = f"the key {promotion.by.name!r} ({keyid[:SHOWN_DIGITS]})"
    if keyid in policy.revoked_keys():
        raise refusal("T16", f"{label} was revoked", "a key that is trusted", _OTHER_KEY)
    key, rule = keyring(policy).trusted.get(keyid), policy.rule(model)
    roles = {"promoter"} if rule is None or rule.promoters else {"promoter", "builder"}
    if key is not None and key.fits(model) and key.role in roles:
        return
    known = f"it is {key.role} of {', '.join(key.models)}" if key else "it is not in it"
    raise refusal(
        "T04",
        f"{label} has no role {' or '.join(sorted(roles))} for {model!r} in the policy: "
        f"{known}",
        "a key whose signature the policy counts",
        _OTHER_KEY,
    )


def _without_promoters(policy: Policy) -> Policy:
    rules = tuple(msgspec.structs.replace(rule, promoters=0) for rule in policy.models)
    return msgspec.structs.replace(policy, models=rules, unsigned="refuse")
