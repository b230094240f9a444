"""Signed statements of one engine, sorted by what was said and by whose signatures hold.

Signatures are checked before a payload is parsed. A statement that cannot be used is set
aside with its reason: junk that somebody adds beside good statements must not keep an engine
from being served, and must not help it either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.engine import Value
from trtbuild.errors import TrustError
from trtbuild.trust import dsse
from trtbuild.trust.policy import TrustedKey, keyring
from trtbuild.trust.refusal import SHOWN_DIGITS, refusal
from trtbuild.trust.statements import (
    GatesStatement,
    ProvenanceStatement,
    ReleaseStatement,
    Statement,
    payload_digest,
    read_statement,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trtbuild.trust.keys import PublicKey
    from trtbuild.trust.policy import Policy, Role
    from trtbuild.trust.statements import (
        Gates,
        Provenance,
        Release,
    )

MAX_STATEMENTS = 1024
"""Of one engine. A release has three, one per role's signature; more is an attack."""


class Signed(Value, frozen=True, kw_only=True):
    """A statement, and the keys of the policy whose signatures over it hold."""

    digest: str
    statement: Statement
    signers: tuple[TrustedKey, ...]

    def of_role(self, role: Role, model: str) -> tuple[TrustedKey, ...]:
        """Return those signers that have the role for the model."""
        return tuple(each for each in self.signers if each.role == role and each.fits(model))

    def names(self, role: Role, model: str) -> tuple[str, ...]:
        """Return the names of those signers that have the role for the model."""
        return tuple(each.name for each in self.of_role(role, model))


class Evidence:
    """What was signed of an engine, and why the rest does not count."""

    def __init__(self) -> None:
        self.refused: list[TrustError] = []
        self._signed: dict[str, Signed] = {}

    @property
    def has_statements(self) -> bool:
        """Whether any statement counts."""
        return bool(self._signed)

    def releases(self) -> list[tuple[Release, Signed]]:
        """Return the releases, the newest first."""
        found = [
            (each.statement.predicate, each)
            for each in self._signed.values()
            if isinstance(each.statement, ReleaseStatement)
        ]
        return sorted(found, key=lambda pair: (-pair[0].seq, pair[1].digest))

    def models(self) -> list[str]:
        """Return the models that releases are of, by name."""
        return sorted({release.model for release, _ in self.releases()})

    def provenance(self, digest: str) -> tuple[Provenance, Signed] | None:
        """Return the provenance with this digest."""
        found = self._signed.get(digest)
        if found is None or not isinstance(found.statement, ProvenanceStatement):
            return None
        return found.statement.predicate, found

    def gates(self, digest: str) -> tuple[Gates, Signed] | None:
        """Return the gates with this digest."""
        found = self._signed.get(digest)
        if found is None or not isinstance(found.statement, GatesStatement):
            return None
        return found.statement.predicate, found

    def add(self, found: Signed) -> None:
        """Add a statement; signatures over one payload in two envelopes count together."""
        known = self._signed.get(found.digest)
        signers = {
            each.public: each for each in (*(known.signers if known else ()), *found.signers)
        }
        self._signed[found.digest] = Signed(
            digest=found.digest, statement=found.statement, signers=tuple(signers.values())
        )


def gather(envelopes: Sequence[bytes], policy: Policy) -> Evidence:
    """Return what the policy's keys signed in ``envelopes``.

    Raises:
        TrustError: T03, there are too many of them to look at.
    """
    if len(envelopes) > MAX_STATEMENTS:
        raise refusal(
            "T03",
            f"{len(envelopes)} signed statements lie beside the engine",
            f"at most {MAX_STATEMENTS}",
            "Somebody fills the store: take away their right to write, and the statements",
        )
    trusted = keyring(policy)
    keys, revoked = trusted.public_keys(), policy.revoked_keys()
    evidence = Evidence()
    for data in envelopes:
        try:
            evidence.add(_signed(data, trusted.trusted, keys, revoked))
        except TrustError as error:  # noqa: PERF203  junk beside good statements
            evidence.refused.append(error)
    return evidence


def _signed(
    data: bytes,
    trusted: Mapping[str, TrustedKey],
    keys: Iterable[PublicKey],
    revoked: Mapping[str, str],
) -> Signed:
    envelope = dsse.decode_envelope(data)
    holding = dsse.signers(envelope, keys)
    good = sorted(holding - revoked.keys())
    if not good and holding:
        keyid = min(holding)
        raise refusal(
            "T16",
            f"the key {trusted[keyid].name!r} ({keyid[:SHOWN_DIGITS]}) was revoked"
            f"{f' ({revoked[keyid]})' if revoked[keyid] else ''}",
            "a signature of a key that is still trusted",
            "Build the engine again, or let it be signed with another key",
        )
    if not good:
        claimed = ", ".join(keyid[:SHOWN_DIGITS] for keyid, _ in envelope.signatures)
        raise refusal(
            "T04",
            f"no signature of a trusted key holds (signed as {claimed})",
            "a valid signature of a key in the policy",
            "If you trust who signed it, run: trtbuild keys trust PUBLIC_KEY",
        )
    return Signed(
        digest=payload_digest(envelope.payload),
        statement=read_statement(envelope.payload),
        signers=tuple(trusted[keyid] for keyid in good),
    )
