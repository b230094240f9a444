"""The policy: whose signatures count for which models, and what else must hold.

A file in TOML, read strictly: an unknown key is an error, since a rule that is not understood
is a rule that is not enforced.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from trtbuild.engine import Value
from trtbuild.trust import strict_toml
from trtbuild.trust.dsse import Sha256
from trtbuild.trust.keys import public_key
from trtbuild.trust.refusal import refusal
from trtbuild.trust.statements import Name
from trtbuild.trust.versions import check_range

if TYPE_CHECKING:
    from trtbuild.errors import TrustError
    from trtbuild.trust.keys import PublicKey

MAX_POLICY_BYTES = 1 << 20
DEVELOPER = "developer"
"""The name of the policy that is in force where no file is."""

Role = Literal["builder", "promoter"]
Pattern = Annotated[
    str, msgspec.Meta(pattern=r"^[A-Za-z0-9._*?\[\]-]{1,128}$(?!\n)", max_length=128)
]
Count = Annotated[int, msgspec.Meta(ge=0, le=16)]
Days = Annotated[int, msgspec.Meta(ge=1, le=36500)]

_DEFAULT_RANGES = {"tensorrt": ">=11.0.0"}
"""Engines of older versions cannot be loaded safely: CVE-2026-24188, -24268, -24272, -24238 and
-24227 are fixed in 10.16.1 and 11.0.0 (NVIDIA's advisories). A policy may say otherwise."""


class TrustedKey(Value, frozen=True, kw_only=True):
    """A ``[[keys]]`` table: a key, its role, and the models that it may sign.

    ``public`` is the line that ``trtbuild keys list`` prints. During a rotation the old and the
    new key both stand here.
    """

    name: Name
    role: Role
    public: str
    models: tuple[Pattern, ...]

    def fits(self, model: str) -> bool:
        """Tell whether the key may sign this model."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)


class Rule(Value, frozen=True, kw_only=True):
    """A ``[[models]]`` table: what engines of these models need; the first that fits counts.

    ``builders`` and ``promoters`` are how many keys of the role must have signed. Empty
    ``builder_ids`` allow every builder whose key is trusted. ``gates`` must have been judged,
    not skipped. ``twins`` allows engines that were measured by their twin only. ``backends``
    has ranges of versions; a backend that is not in it may have any, but TensorRT 11 or newer.
    """

    names: tuple[Pattern, ...]
    builders: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    promoters: Count = 0
    builder_ids: tuple[str, ...] = ()
    max_age_days: Days | None = None
    gates: tuple[Name, ...] = ()
    twins: bool = True
    backends: dict[str, str] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse ranges that nobody could be in or out of."""
        for text in self.backends.values():
            check_range(text)

    def fits(self, model: str) -> bool:
        """Tell whether the table is about this model."""
        return any(fnmatchcase(model, pattern) for pattern in self.names)

    def versions(self, backend: str) -> str:
        """Return the range that the backend's version must be in, empty for any."""
        return self.backends.get(backend, _DEFAULT_RANGES.get(backend, ""))


class Plugins(Value, frozen=True, kw_only=True):
    """The ``[plugins]`` table: sha256 of the libraries that an engine may need."""

    allowed: tuple[Sha256, ...] = ()


class Revoked(Value, frozen=True, kw_only=True):
    """A ``[[revoked]]`` table: a key's id or an engine's digest, and why."""

    key: Sha256 | None = None
    engine: Sha256 | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        """Refuse an entry that revokes nothing, or two things."""
        if (self.key is None) == (self.engine is None):
            message = "expected exactly one of key and engine"
            raise ValueError(message)


class Policy(Value, frozen=True, kw_only=True):
    """What must hold before an engine is loaded.

    ``unsigned``: ``refuse`` them, or allow those ``local`` ones that this user built on this
    machine. ``canary`` loads an engine in a child process first, once per machine.
    ``host_code`` allows version-compatible engines, which bring a runtime for this machine's
    processor.
    """

    schema: Literal[1]
    unsigned: Literal["refuse", "local"] = "refuse"
    canary: bool = True
    host_code: bool = False
    canary_seconds: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 60
    models: tuple[Rule, ...] = ()
    keys: tuple[TrustedKey, ...] = ()
    plugins: Plugins = Plugins()
    revoked: tuple[Revoked, ...] = ()

    def rule(self, model: str) -> Rule | None:
        """Return the first table about the model, None where there is none."""
        return next((rule for rule in self.models if rule.fits(model)), None)

    def revoked_keys(self) -> dict[str, str]:
        """Return the reasons by the ids of revoked keys."""
        return {each.key: each.reason for each in self.revoked if each.key}

    def revoked_engines(self) -> dict[str, str]:
        """Return the reasons by the digests of revoked engines."""
        return {each.engine: each.reason for each in self.revoked if each.engine}


DEVELOPER_POLICY = Policy(schema=1, unsigned="local")
"""No key is trusted, and what this user built on this machine is loaded unsigned."""


class Keyring(Value, frozen=True, kw_only=True):
    """The keys of a policy, by id, ready to check signatures with."""

    trusted: dict[str, TrustedKey]

    def public_keys(self) -> tuple[PublicKey, ...]:
        """Return the keys themselves."""
        return tuple(public_key(each.public) for each in self.trusted.values())


def keyring(policy: Policy) -> Keyring:
    """Return the keys of ``policy`` by id; :func:`read_policy` made sure that each is one."""
    return Keyring(trusted={public_key(each.public).keyid: each for each in policy.keys})


def read_policy(data: bytes, name: str) -> Policy:
    """Return the policy in a file's bytes; ``name`` is what messages call it.

    Raises:
        TrustError: T01, the message names table and key.
    """
    try:
        tables = strict_toml.parse(data)
        policy = msgspec.convert(tables, Policy, strict=True)
        found = [public_key(each.public).keyid for each in policy.keys]
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise _wrong(name, _place(str(error))) from error
    if len(set(found)) != len(found):
        raise _wrong(name, "one key stands in two [[keys]] tables; builder and promoter differ")
    return policy


def json_schema() -> dict[str, object]:
    """Return the JSON schema of a policy file, for editors."""
    return msgspec.json.schema(Policy)


def key_table(key: TrustedKey) -> str:
    """Return the lines that add ``key`` at the end of a policy file."""
    models = ", ".join(f'"{pattern}"' for pattern in key.models)
    return (
        f'\n[[keys]]\nname = "{key.name}"\nrole = "{key.role}"\npublic = "{key.public}"\n'
        f"models = [{models}]\n"
    )


def revoked_table(what: Literal["key", "engine"], digest: str, reason: str) -> str:
    """Return the lines that revoke a key or an engine at the end of a policy file."""
    plain = re.sub(r"[^ -!#-\[\]-~]", "", reason)
    return f'\n[[revoked]]\n{what} = "{digest}"\nreason = "{plain}"\n'


NEW_POLICY = """\
# Which engines trtbuild.load may load (README, Trust). An unknown key in it is an error.
schema = 1
unsigned = "refuse"         # "local": also what you built on this machine (for developers)
canary = true               # first load of an engine on a machine in a child process

[[models]]                  # the first table whose names fit a recipe's name counts
names = ["*"]
builders = 1                # keys with the role builder that must have signed
promoters = 0               # and with the role promoter: 1 for production
# builder_ids = ["https://github.com/ORG/REPO/.github/workflows/nightly.yml"]
# max_age_days = 30         # of a release, even if it has not expired
# gates = ["max_drop"]      # must have been judged, not skipped
# twins = false             # refuse engines that only their twin was measured of
# [models.backends]
# tensorrt = ">=11.0.0,<12"

# [plugins]
# allowed = ["sha256 of a library"]
"""
"""What ``trtbuild keys trust`` begins a policy file with."""


def _place(text: str) -> str:
    problem, _, place = text.partition(" - at `$")
    return f"{place.rstrip('`').lstrip('.')}: {problem}" if place else problem


def _wrong(name: str, problem: str) -> TrustError:
    return refusal(
        "T01",
        f"policy {name}: {problem}",
        "TOML with schema = 1, [[models]], [[keys]], [plugins] and [[revoked]]",
        "Correct the file; nothing is loaded until then",
    )
