"""What ``trtbuild doctor`` says of trust: the policy in force, and who signs."""

from __future__ import annotations

from trtbuild.cli.installation import Check
from trtbuild.errors import TrtbuildError
from trtbuild.pipeline.chosen_key import KEY_VARIABLE, chosen_key
from trtbuild.pipeline.key_files import load_key
from trtbuild.runtime.trust_files import POLICY_VARIABLE, load_policy, policy_name
from trtbuild.trust.policy import DEVELOPER


def trust_checks() -> tuple[Check, ...]:
    """Return one check for the policy and one for the signing key."""
    return (_policy(), _key())


def _policy() -> Check:
    name = policy_name("")
    if name == DEVELOPER:
        return Check(
            group="trust",
            name="policy",
            state="missing",
            detail="developer: loads unsigned engines that you built on this machine",
            remedy=f"for production: trtbuild keys trust KEY, or {POLICY_VARIABLE}=FILE",
        )
    try:
        policy = load_policy(name)
    except TrtbuildError as error:
        return Check(group="trust", name="policy", state="broken", detail=str(error))
    unsigned = "refuses unsigned engines"
    if policy.unsigned == "local":
        unsigned = "loads unsigned engines that you built on this machine"
    return Check(
        group="trust",
        name="policy",
        state="ok",
        detail=f"{name}: keys trusted: {len(policy.keys)}; {unsigned}",
    )


def _key() -> Check:
    name = chosen_key()
    if not name:
        return Check(
            group="trust",
            name="signing key",
            state="missing",
            detail="engines are not signed",
            remedy=f"trtbuild keys generate NAME --use, or {KEY_VARIABLE}=FILE",
        )
    try:
        key = load_key(name)
    except TrtbuildError as error:
        return Check(group="trust", name="signing key", state="broken", detail=str(error))
    label = f"{name} ({key.public.keyid[:12]})"
    revoked = _revoked()
    if key.public.keyid in revoked:
        reason = f" ({revoked[key.public.keyid]})" if revoked[key.public.keyid] else ""
        return Check(
            group="trust",
            name="signing key",
            state="broken",
            detail=f"{label} is revoked by the policy{reason}: nothing is signed with it",
            remedy=f"trtbuild keys generate NAME --use, or {KEY_VARIABLE}=FILE",
        )
    detail = f"{label} signs what engine and nightly build"
    return Check(group="trust", name="signing key", state="ok", detail=detail)


def _revoked() -> dict[str, str]:
    """Return what keys the policy revokes, and why; none where it cannot be read."""
    try:
        return load_policy(policy_name("")).revoked_keys()
    except TrtbuildError:  # the policy's own check says it
        return {}
