"""``engines.lock``: which engine a deployment serves for each model on each target.

A key does not name an engine (builds of one key may differ in their bytes), so what is pinned
is the engine's digest, with the release that it was admitted by. The file is committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from trtbuild.engine import Value
from trtbuild.trust import strict_toml
from trtbuild.trust.candidate import Pin
from trtbuild.trust.dsse import Sha256
from trtbuild.trust.refusal import refusal
from trtbuild.trust.statements import Name, TargetName
from trtbuild.trust.strict_json import MAX_INTEGER

if TYPE_CHECKING:
    from trtbuild.errors import TrustError

DEFAULT_NAME = "engines.lock"
MAX_LOCK_BYTES = 1 << 20
"""Over 5,000 engines."""

_HEAD = """\
# Which engines are served: written by "trtbuild lock", read by trtbuild.load(lock=...).
# Commit it. seq is the number of the release, 0 for an unsigned engine.
schema = 1
"""


class Entry(Value, frozen=True, kw_only=True):
    """One pinned engine."""

    engine: Sha256
    seq: Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]


class Lock(Value, frozen=True, kw_only=True):
    """The file: entries by model and target."""

    schema: Literal[1] = 1
    engines: dict[Name, dict[TargetName, Entry]] = msgspec.field(default_factory=dict)

    def pins(self) -> tuple[Pin, ...]:
        """Return all entries, sorted by model and target."""
        return tuple(
            Pin(model=model, target=target, engine=entry.engine, seq=entry.seq)
            for model, targets in sorted(self.engines.items())
            for target, entry in sorted(targets.items())
        )

    def with_pin(self, pin: Pin) -> Lock:
        """Return the lock with one entry added or replaced."""
        targets = {
            **self.engines.get(pin.model, {}),
            pin.target: Entry(engine=pin.engine, seq=pin.seq),
        }
        return Lock(engines={**self.engines, pin.model: targets})

    def without(self, models: tuple[str, ...]) -> Lock:
        """Return the lock without the entries of these models."""
        kept = {model: each for model, each in self.engines.items() if model not in models}
        return Lock(engines=kept)


def write_lock(lock: Lock) -> str:
    """Return the file's text, sorted, one table per entry, so that changes are easy to read."""
    tables = [
        f'\n[engines."{pin.model}"."{pin.target}"]\nengine = "{pin.engine}"\nseq = {pin.seq}\n'
        for pin in lock.pins()
    ]
    return _HEAD + "".join(tables)


def read_lock(data: bytes, name: str) -> Lock:
    """Return the lock in a file's bytes; ``name`` is what messages call it.

    Raises:
        TrustError: T02, it is not exactly a lockfile.
    """
    try:
        tables = strict_toml.parse(data)
        if "schema" not in tables:
            raise wrong_lock(name, "it has no schema")
        return msgspec.convert(tables, Lock, strict=True)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise wrong_lock(name, str(error)) from error


def wrong_lock(name: str, problem: str, *, missing: bool = False) -> TrustError:
    """Return the refusal of a lockfile that cannot be used, or that is not there."""
    remedy = "Take it from version control again, or remove it and make it anew: trtbuild lock"
    if missing:
        remedy = "Correct its path, take it from version control, or make it: trtbuild lock"
    return refusal("T02", f"lockfile {name}: {problem}", "what 'trtbuild lock' writes", remedy)
