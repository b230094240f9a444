"""Who signed an engine, for people to read; what lets one be loaded is decided elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.errors import TrustError
from trtbuild.pipeline import key_files
from trtbuild.report.document import EngineSignature
from trtbuild.runtime import trust_files
from trtbuild.trust import dsse
from trtbuild.trust.policy import keyring

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trtbuild.trust.keys import PublicKey


def signatures(envelopes: Iterable[bytes]) -> tuple[EngineSignature, ...]:
    """Return who signed any of ``envelopes``, each key once, by name.

    Signatures are verified with the keys of the policy in force and with the user's own.

    Raises:
        TrustError: T01, the policy cannot be used.
    """
    policy = trust_files.load_policy(trust_files.policy_name(""))
    trusted = keyring(policy)
    known: dict[str, PublicKey] = {key.keyid: key for key in trusted.public_keys()}
    names: dict[str, tuple[str, str]] = {
        keyid: (key.name, key.role) for keyid, key in trusted.trusted.items()
    }
    for name, key in key_files.own_keys().items():
        known.setdefault(key.keyid, key)
        names.setdefault(key.keyid, (name, ""))
    revoked = policy.revoked_keys()
    found: dict[str, EngineSignature] = {}
    for data in envelopes:
        try:
            envelope = dsse.decode_envelope(data)
        except TrustError:
            continue
        holding = dsse.signers(envelope, known.values())
        for keyid, _ in envelope.signatures:
            holds = keyid in holding
            if keyid in found and (found[keyid].holds or not holds):
                continue
            name, role = names.get(keyid, ("", ""))
            found[keyid] = EngineSignature(
                keyid=keyid,
                name=name,
                role="revoked" if keyid in revoked else role,
                holds=holds,
            )
    return tuple(sorted(found.values(), key=lambda each: (each.name, each.keyid)))
