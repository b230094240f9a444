"""The register of attacks, and what attacks of several kinds are made with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from tests.trust.forge import HEAD, KEYS, POLICY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.trust.forge import Attempt, Forge
    from trtbuild.engine import EngineKey

Make: TypeAlias = "Callable[[Forge], Attempt]"
CASES: dict[str, tuple[str, Make]] = {}
LOCAL = 'unsigned = "local"\n' + HEAD + KEYS


def add(code: str, name: str, make: Make) -> None:
    if name in CASES:
        message = f"two cases are called {name}"
        raise ValueError(message)
    CASES[name] = (code, make)


def add_all(code: str, /, **makes: Make) -> None:
    for name, make in makes.items():
        add(code, name, make)


def case(code: str) -> Callable[[Make], Make]:
    def added(make: Make) -> Make:
        add(code, make.__name__, make)
        return make

    return added


def good(f: Forge) -> Attempt:
    return f.attempt()


def tried(make: Make = good, **changes: Any) -> Make:  # noqa: ANN401  fields of an Attempt
    return lambda f: replace(make(f), **changes)


def ruled(line: str, policy: str = POLICY) -> str:
    """Return the policy with one line more in its table of models."""
    return policy.replace("promoters = 1", f"promoters = 1\n{line}")


def promoters(count: int) -> str:
    """Return the policy that wants so many promoters."""
    return POLICY.replace("promoters = 1", f"promoters = {count}")


def rekeyed(f: Forge) -> EngineKey:
    preimage: EngineKey = f.manifest.preimage
    return msgspec.structs.replace(preimage, network_sha256="1" * 64)
