"""Promote an engine: sign that it may be served, after checking what its builder signed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import msgspec

from trtbuild.errors import TrustError, UsageError
from trtbuild.pipeline.signing import next_seq
from trtbuild.runtime.admission import candidate_of
from trtbuild.store import find_engine
from trtbuild.store.statements import statements
from trtbuild.trust.candidate import Situation
from trtbuild.trust.checks import check_engine, check_release, decide
from trtbuild.trust.evidence import gather
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


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What to promote: an engine, under which policy, by whom, as which model.

    An empty ``model`` is that of the newest release. With ``cosign`` the newest promotion gets
    one more signature instead of a new one being made.
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
        TrustError: the policy would refuse it for another reason than a missing promotion.
        UsageError: nothing, or more than one engine, has this name; or no release to cosign.
        StoreError: the store cannot be written.
    """
    record = find_engine(store, promotion.engine)
    candidate = candidate_of(store, record)
    envelopes = statements(store, candidate.sha256)
    newest = _checked(candidate, envelopes, promotion)
    if promotion.cosign:
        release = _promoted(envelopes, promotion, newest.model)
    else:
        now = second(datetime.now(timezone.utc))
        release = msgspec.structs.replace(
            newest,
            seq=next_seq(newest.seq),
            created=now,
            expires=days_after(now, promotion.by.days),
        )
    payload = payload_of(candidate.sha256, candidate.manifest_sha256, release)
    promotion.by.put(store, candidate.sha256, payload)
    return release


def _checked(
    candidate: Candidate, envelopes: tuple[bytes, ...], promotion: Promotion
) -> Release:
    """Return the newest release whose statements hold, with the largest number of its model."""
    policy = _without_promoters(promotion.policy)
    now = Situation(policy=policy, now=datetime.now(timezone.utc), seen={})
    check_engine(candidate, now)
    evidence = gather(envelopes, policy)
    found = [
        (release, signed)
        for release, signed in evidence.releases()
        if promotion.model in ("", release.model)
    ]
    if not found:
        decide(candidate, envelopes, now)
        raise UsageError(
            f"engine {candidate.sha256[:12]} has no release as {promotion.model!r}: name a "
            f"model that a builder signed it as"
        )
    failed: TrustError | None = None
    for release, signed in found:
        then = Situation(policy=policy, now=moment(release.created), seen={})
        try:
            check_release(candidate, evidence, (release, signed), then)
        except TrustError as error:
            failed = failed or error
            continue
        last = max(each.seq for each, _ in found if each.model == release.model)
        return msgspec.structs.replace(release, seq=last)
    if failed is None:
        message = "a loop over releases ended without a result"
        raise ValueError(message)
    raise failed


def _promoted(envelopes: tuple[bytes, ...], promotion: Promotion, model: str) -> Release:
    for release, signed in gather(envelopes, promotion.policy).releases():
        if release.model == model and signed.names("promoter", model):
            return release
    raise UsageError("there is no promotion to cosign: promote without --cosign first")


def _without_promoters(policy: Policy) -> Policy:
    rules = tuple(msgspec.structs.replace(rule, promoters=0) for rule in policy.models)
    return msgspec.structs.replace(policy, models=rules, unsigned="refuse")
