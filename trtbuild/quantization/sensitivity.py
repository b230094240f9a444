"""What each node's quantization costs, from far fewer runs than there are nodes.

Noise of independent roundings adds up at the model's outputs. So nodes are quantized in groups,
and only groups whose noise matters are divided further; what a group costs is distributed over
its nodes by their noise at their own outputs (:mod:`trtbuild.quantization.local_noise`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trtbuild.engine import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

VERSION = 1
"""Part of the key of a sensitivity; raised when it starts to give other figures."""

RUINED = 1e9
"""The noise of an output that is not finite, or not zero where it should be."""

_FIRST_GROUPS = 8
_SMALL_SHARE = 0.02
"""A group of less than this share of the noise of all groups is not divided."""


class Damage(Value, frozen=True, kw_only=True):
    """What quantizing some nodes does to the model.

    ``noise`` has one entry per output of the model: the energy of the error over that of the
    unquantized output. ``drop`` is the drop of the metric against the unquantized model, and
    ``None`` without a metric or where it is not a number.
    """

    noise: tuple[float, ...]
    drop: float | None

    @property
    def worst_noise(self) -> float:
        """The noise of the output that suffers most."""
        return max(self.noise, default=0.0)


class Cost(Value, frozen=True, kw_only=True):
    """What the quantization of one node alone costs.

    ``noise`` and ``drop`` are as in :class:`Damage`; ``group`` is how many nodes were measured
    together: 1 means that this figure was measured, more that it is this node's part of the
    group's.
    """

    noise: tuple[float, ...]
    drop: float | None
    group: int

    @property
    def worst_noise(self) -> float:
        """The noise of the output that suffers most."""
        return max(self.noise, default=0.0)

    @property
    def measured(self) -> bool:
        """Whether this node was measured alone."""
        return self.group == 1


def sqnr_db(noise: float) -> float | None:
    """Return the SQNR in dB of a noise-to-signal ratio of energies, None without noise."""
    return -10 * math.log10(noise) if noise > 0 else None


def default_runs(nodes: int) -> int:
    """Return how many groups are measured for so many nodes: all of few, 64 of a thousand."""
    return min(nodes, math.ceil(2 * math.sqrt(nodes)) + 4)


def attribute(
    local: Mapping[str, float],
    measure: Callable[[Sequence[frozenset[str]]], Sequence[Damage]],
    runs: int,
) -> dict[str, Cost]:
    """Return the cost of each node, from at most ``runs`` measurements of groups.

    ``local`` is each node's noise at its own output (energy of the error over that of the
    signal), in the graph's order. ``measure`` quantizes the nodes of each group that it is
    given, and nothing else. Groups of about equal local noise come first, so that a node that
    makes most of it is alone; then the group with the most noise at the model's outputs is
    divided, again and again. Deterministic.
    """
    order = sorted(local, key=lambda name: -local[name])
    first = min(len(order), _FIRST_GROUPS, max(runs, 1))
    found = _measured(_even(order, local, first), measure)
    left = runs - len(found)
    while left > 1:
        total = sum(damage.worst_noise for damage in found.values())
        open_groups = [
            group
            for group, damage in found.items()
            if len(group) > 1 and damage.worst_noise > _SMALL_SHARE * total
        ]
        if not open_groups:
            break
        open_groups.sort(key=lambda group: -found[group].worst_noise)
        # The worst half of them in one pass over the data: the others may be small beside it.
        chosen = open_groups[: max(1, min(len(open_groups) // 2, left // 2))]
        halves = [half for group in chosen for half in _even(list(group), local, 2)]
        for group in chosen:
            del found[group]
        found.update(_measured(halves, measure))
        left -= len(halves)
    costs = {
        name: cost
        for group, damage in found.items()
        for name, cost in _distributed(group, damage, local).items()
    }
    return {name: costs[name] for name in local}


def _measured(
    groups: list[tuple[str, ...]],
    measure: Callable[[Sequence[frozenset[str]]], Sequence[Damage]],
) -> dict[tuple[str, ...], Damage]:
    damages = measure([frozenset(group) for group in groups])
    return dict(zip(groups, damages, strict=True))


def _even(order: list[str], local: Mapping[str, float], number: int) -> list[tuple[str, ...]]:
    """Cut ``order`` into ``number`` runs of about equal local noise, none empty."""
    groups: list[tuple[str, ...]] = []
    rest = list(order)
    for missing in range(number, 1, -1):
        wanted = sum(local[name] for name in rest) / missing
        size, reached = 1, local[rest[0]]
        while size < len(rest) - missing + 1 and reached + local[rest[size]] / 2 <= wanted:
            reached += local[rest[size]]
            size += 1
        groups.append(tuple(rest[:size]))
        rest = rest[size:]
    return [*groups, tuple(rest)]


def _distributed(
    group: tuple[str, ...], damage: Damage, local: Mapping[str, float]
) -> dict[str, Cost]:
    total = sum(local[name] for name in group)
    costs = {}
    for name in group:
        share = local[name] / total if total > 0 else 1 / len(group)
        drop = damage.drop
        costs[name] = Cost(
            noise=tuple(noise * share for noise in damage.noise),
            drop=None if drop is None else drop * share,
            group=len(group),
        )
    return costs
