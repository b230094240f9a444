"""What a release's statements must say of an engine: where it is from, what it was worth.

Provenance (T09), gates (T10), what the engine carries (T11), and its library's version (T12).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from trtbuild.canonical import encode
from trtbuild.trust import versions
from trtbuild.trust.refusal import refusal
from trtbuild.trust.statements import (
    BUILD_TYPE,
    ENGINE,
    MANIFEST,
    Parameters,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtbuild.errors import TrustError
    from trtbuild.trust.candidate import Candidate
    from trtbuild.trust.evidence import Signed
    from trtbuild.trust.policy import Policy, Role, Rule
    from trtbuild.trust.statements import (
        Gates,
        Provenance,
        Release,
    )

_NOT_PARAMETERS = "its parameters are not those of a build"


def check_count(
    candidate: Candidate, what: str, needed: tuple[Role, int], signed: Signed, model: str
) -> None:
    """Refuse (T04) a statement that fewer keys of a role signed than ``needed`` says.

    Keys that the policy trusts otherwise, and that signed it too, are named with their models.
    """
    role, count = needed
    names = signed.names(role, model)
    if len(names) < count:
        others = [each for each in signed.signers if each.role != role or not each.fits(model)]
        known = "".join(
            f"; {each.name!r} signed it, but is trusted as {each.role} of "
            f"{', '.join(each.models)} only"
            for each in others
        )
        remedy = (
            "Let it be promoted: trtbuild promote ENGINE (with --cosign for one more signature)"
            if role == "promoter"
            else "Let a builder sign it whose key the policy trusts for this model"
        )
        if any(each.role == role for each in others):
            remedy += ", or add the model to those of the key that signed it (in the policy)"
        raise refusal(
            "T04",
            f"{candidate.label}: its {what} has {len(names)} signatures of the role {role} "
            f"for {model!r} ({', '.join(names) or 'none'}){known}",
            str(count),
            remedy,
        )


def other_part(candidate: Candidate, name: str, was_signed: str, is_here: str) -> TrustError:
    """Return the refusal (T08) of an engine of which a part is not the one that was signed."""
    return refusal(
        "T08",
        f"{candidate.label}: what was signed has another {name}, {was_signed[:64]}",
        is_here[:64],
        "Two hosts built one key, or parts of two engines were combined: pull the one that was "
        "signed, which takes its place (trtbuild cache pull ENGINE --from URI)",
    )


# T09


def check_provenance(
    candidate: Candidate,
    release: Release,
    found: tuple[Provenance, Signed] | None,
    rule: Rule,
) -> None:
    """Refuse (T09) an engine that was not built by an allowed builder as its key says."""
    if found is None:
        raise _no_provenance(candidate, "the provenance that its release names is not there")
    provenance, signed = found
    check_count(candidate, "provenance", ("builder", rule.builders), signed, release.model)
    _check_subject(candidate, signed)
    definition = provenance.build_definition
    if definition.build_type != BUILD_TYPE:
        raise _no_provenance(candidate, f"its build type is {definition.build_type[:64]!r}")
    _check_parameters(candidate, release, definition.external_parameters)
    builder = provenance.run_details.builder.id
    if rule.builder_ids and builder not in rule.builder_ids:
        raise _no_provenance(candidate, f"it was built by {builder[:128]!r}")


def _check_parameters(
    candidate: Candidate, release: Release, given: Mapping[str, object]
) -> None:
    expected = Parameters(
        model=release.model,
        target=str(candidate.preimage.target),
        key=candidate.key,
        preimage=candidate.preimage,
    )
    names = {field.encode_name for field in msgspec.structs.fields(Parameters)}
    odd = sorted(names ^ given.keys())
    if odd:
        raise _no_provenance(
            candidate, f"{_NOT_PARAMETERS}: {odd[0][:64]!r} is unknown or missing"
        )
    for name in sorted(names):
        if encode(given[name]) != encode(getattr(expected, name)):
            raise _no_provenance(candidate, f"{_NOT_PARAMETERS}: another {name} was signed")


def _check_subject(candidate: Candidate, signed: Signed) -> None:
    for name, digest in ((ENGINE, candidate.sha256), (MANIFEST, candidate.manifest_sha256)):
        if signed.statement.digest_of(name) != digest:
            raise other_part(candidate, name, signed.statement.digest_of(name), digest)


def _no_provenance(candidate: Candidate, problem: str) -> TrustError:
    return refusal(
        "T09",
        f"{candidate.label}: {problem}",
        "the provenance of this very build, by a builder that the policy allows",
        "Build and sign the engine again where the policy allows it",
    )


# T10


def check_gates(
    candidate: Candidate, release: Release, found: tuple[Gates, Signed] | None, rule: Rule
) -> None:
    """Refuse (T10) an engine whose gates failed, or were not judged as the rule wants it."""
    if found is None:
        raise _no_gates(candidate, "the gates that its release names are not there")
    gates, signed = found
    check_count(candidate, "gates", ("builder", rule.builders), signed, release.model)
    _check_subject(candidate, signed)
    failed = [gate.name for gate in gates.gates if not gate.passed]
    if failed or not gates.passed:
        raise _no_gates(candidate, f"it failed {', '.join(failed) or 'its verification'}")
    judged = {gate.name for gate in gates.gates if not gate.skipped}
    missing = [name for name in rule.gates if name not in judged]
    if missing:
        raise _no_gates(candidate, f"nobody judged {', '.join(missing)}")
    if gates.measured_on == "twin" and not rule.twins:
        raise _no_gates(candidate, "only its twin was measured, not the engine on its device")


def _no_gates(candidate: Candidate, problem: str) -> TrustError:
    return refusal(
        "T10",
        f"{candidate.label}: {problem}",
        "all gates passed, and those of the policy judged",
        "Do not serve it: see 'trtbuild verify ENGINE'",
    )


# T11

_PLUGINS = "plugins"
_EMBEDDED = "plugins_to_serialize"


def check_settings(candidate: Candidate, policy: Policy) -> None:
    """Refuse (T11) host code and plugins by the settings that the engine was built with."""
    settings = dict(candidate.preimage.settings)
    lean = settings.get("version_compatible") and not settings.get("exclude_lean_runtime")
    if lean and not policy.host_code:
        raise _code_inside(candidate, "it carries a lean runtime (version_compatible)")
    if settings.get(_EMBEDDED):
        raise _code_inside(candidate, "plugins are embedded in it")
    for sha256 in filter(None, str(settings.get(_PLUGINS) or "").split(",")):
        if sha256 not in policy.plugins.allowed:
            raise _code_inside(candidate, f"it needs the plugin library {sha256[:64]}")


def _code_inside(candidate: Candidate, problem: str) -> TrustError:
    return refusal(
        "T11",
        f"{candidate.label}: {problem}",
        "no host code, and only plugins that the policy lists under [plugins] allowed",
        "Build it without, or let the policy allow it: host_code = true, or [plugins]",
    )


# T12


def check_version(candidate: Candidate, rule: Rule) -> None:
    """Refuse (T12) an engine of a version of its library that the rule does not allow."""
    fingerprint = candidate.preimage.fingerprint
    allowed = rule.versions(fingerprint.backend)
    if allowed and not versions.contains(allowed, fingerprint.version):
        raise refusal(
            "T12",
            f"{candidate.label} was built with {fingerprint.backend} {fingerprint.version}",
            f"a version that the policy allows ({allowed})",
            "Build it with such a version",
        )
