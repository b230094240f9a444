"""Which optimization profile of an engine serves a call."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trtbuild.engine import Value
from trtbuild.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Sizes = tuple[int, ...]


class Bounds(Value, frozen=True, kw_only=True):
    """What one input may be in one profile: its shape, or its values where it is a shape.

    Unlike a recipe's range, a size may be 0.
    """

    min: Sizes
    opt: Sizes
    max: Sizes

    def holds(self, sizes: Sizes) -> bool:
        """Return whether ``sizes`` lie between ``min`` and ``max`` on every axis."""
        return len(sizes) == len(self.max) and all(
            low <= size <= high
            for low, size, high in zip(self.min, sizes, self.max, strict=True)
        )


def choose(profiles: Sequence[Mapping[str, Bounds]], call: Mapping[str, Sizes]) -> int:
    """Return the index of the smallest profile that holds every input of a call.

    Smallest by the elements of its largest shapes, then by the distance of what it was tuned
    for from the call, then by its place.

    Raises:
        UsageError: none does; the message lists what each takes.
    """
    fitting = [
        (_elements(profile), _distance(profile, call), index)
        for index, profile in enumerate(profiles)
        if all(bounds.holds(call[name]) for name, bounds in profile.items())
    ]
    if fitting:
        return min(fitting)[2]
    given = ", ".join(f"{name!r} {list(sizes)}" for name, sizes in call.items())
    ranges = "; ".join(
        f"profile {index}: "
        + ", ".join(f"{n!r} from {list(b.min)} to {list(b.max)}" for n, b in profile.items())
        for index, profile in enumerate(profiles)
    )
    message = (
        f"shape of {given} is outside of the profile{'s' * (len(profiles) > 1)} ({ranges}): "
        f"give another, or build the engine with a profile that holds it"
    )
    raise UsageError(message)


def _elements(profile: Mapping[str, Bounds]) -> int:
    return sum(math.prod(bounds.max) for bounds in profile.values())


def _distance(profile: Mapping[str, Bounds], call: Mapping[str, Sizes]) -> int:
    return sum(
        abs(size - tuned)
        for name, bounds in profile.items()
        for size, tuned in zip(call[name], bounds.opt, strict=True)
    )
