"""Several engines in one run: latency by every clock, throughput, energy, and who is faster.

The protocol, which knows no device (docs/decisions/0015-latency.md): what is called are lanes
and workers, what is read is a meter. An invalid run is repeated a few times before it is given
up, and then reported as what it is.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import numpy as np

from trtbuild.engine import Value
from trtbuild.verification.conditions import ATTEMPTS, Conditions, calm
from trtbuild.verification.intervals import ratio
from trtbuild.verification.latency import measure_lanes
from trtbuild.verification.rates import Rate, RatePlan, Worker, no_graphs, rates
from trtbuild.verification.results import Latency, Speedup
from trtbuild.verification.turns import LatencyPlan
from trtbuild.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trtbuild.backends.meter import Meter
    from trtbuild.verification.turns import Lane

_ERROR = 0.05


class Way(Value, frozen=True, kw_only=True):
    """How a call was timed: by which clock, with or without copies, as a CUDA graph or not.

    ``transfers`` are the copies between host and device (on a processor there is nothing to
    copy). ``host_bound``: the GPU could not be kept waiting until a call was enqueued, so that
    a time between CUDA events may be the host's.
    """

    clock: Literal["host", "cuda events"] = "host"
    transfers: bool = True
    cuda_graph: bool = False
    host_bound: bool = False

    @property
    def by(self) -> tuple[str, bool, bool]:
        """What must be the same of two times for one to be faster than the other."""
        return self.clock, self.transfers, self.host_bound

    def __str__(self) -> str:
        """Return what a table calls it, ``CUDA events, no copies, graph``."""
        words = ["host clock"] if self.clock == "host" else ["CUDA events"]
        if not self.transfers:
            words.append("no copies")
        elif self.clock == "cuda events":
            words.append("with copies")
        marks = {"graph": self.cuda_graph, "host-bound": self.host_bound}
        return ", ".join(words + [word for word, is_so in marks.items() if is_so])


HOST = Way()


class ContestPlan(Value, frozen=True, kw_only=True):
    """How to measure; an invalid run is repeated until there were ``attempts``."""

    latency: LatencyPlan
    rate: RatePlan
    attempts: Annotated[int, msgspec.Meta(ge=1)] = ATTEMPTS


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One engine, the ways to time it, and what threads call.

    ``fed`` says what it is given, so that only engines which do the same work are compared.
    ``graphs`` tells how many calls so far were CUDA graphs.
    """

    name: str
    fed: str
    batch_size: int
    worker: Callable[[], object]
    graphs: Callable[[], float] = no_graphs
    lanes: Mapping[Way, Lane] = field(default_factory=dict)


class Comparison(Value, frozen=True, kw_only=True):
    """Two engines, timed in one way: how many times faster ``engine`` is than ``baseline``.

    The interval is wide enough for all comparisons of a way to hold together (95 %,
    Bonferroni). ``distinct`` is false where it has 1 inside: the two cannot be told apart.
    """

    engine: str
    baseline: str
    way: Way
    speedup: Speedup
    distinct: bool


class Outcome(Value, frozen=True, kw_only=True):
    """Everything that one contest found, by the names of the contestants.

    ``latencies`` has one entry per contestant and way, in their order. ``attempts`` counts the
    runs; the figures are of the last one, the only one that may be valid.
    """

    latencies: tuple[tuple[str, Way, Latency], ...]
    rates: dict[str, tuple[Rate, ...]]
    comparisons: tuple[Comparison, ...]
    conditions: Conditions
    attempts: int


def contest(
    contestants: Sequence[Contestant],
    plan: ContestPlan,
    meter: Meter,
    say: Callable[[str], None],
) -> Outcome:
    """Measure all contestants in turns, again while the device throttles.

    Raises:
        ValueError: there is no contestant, or two have one name.
    """
    if not contestants or len({each.name for each in contestants}) < len(contestants):
        message = "expected contestants with names of their own"
        raise ValueError(message)
    found, conditions, attempts = calm(
        lambda: _run(contestants, plan, meter, say), meter, plan.attempts, say
    )
    latencies, speeds = found
    return Outcome(
        latencies=tuple((*key, latency) for key, latency in latencies.items()),
        rates=speeds,
        comparisons=compare(contestants, latencies),
        conditions=conditions,
        attempts=attempts,
    )


def _run(
    contestants: Sequence[Contestant],
    plan: ContestPlan,
    meter: Meter,
    say: Callable[[str], None],
) -> tuple[dict[tuple[str, Way], Latency], dict[str, tuple[Rate, ...]]]:
    lanes = {(each.name, way): lane for each in contestants for way, lane in each.lanes.items()}
    keys = {str(index): key for index, key in enumerate(lanes)}
    sizes = {each.name: each.batch_size for each in contestants}
    say(f"latency: {counted(len(contestants), 'engine')} in turns")
    found = measure_lanes(
        {index: lanes[key] for index, key in keys.items()},
        {index: sizes[key[0]] for index, key in keys.items()},
        plan.latency,
    )
    say(f"throughput: {' '.join(map(str, plan.rate.threads))} threads")
    workers = {
        each.name: Worker(call=each.worker, batch_size=each.batch_size, graphs=each.graphs)
        for each in contestants
    }
    speeds = rates(workers, plan.rate, meter)
    return {key: found[index] for index, key in keys.items()}, speeds


def compare(
    contestants: Sequence[Contestant], latencies: Mapping[tuple[str, Way], Latency]
) -> tuple[Comparison, ...]:
    """Return every pair of engines that were fed alike and timed by one clock.

    A CUDA graph is part of what is compared: an engine with one against an engine without.
    """
    pairs = [
        ((first.name, baseline_way), (second.name, way))
        for first, second in itertools.combinations(contestants, 2)
        if first.fed == second.fed
        for baseline_way in first.lanes
        for way in second.lanes
        if baseline_way.by == way.by
    ]
    found = []
    for baseline, engine in pairs:
        together = sum(other.by == engine[1].by for _, (_, other) in pairs)
        speedup = ratio(
            np.asarray(latencies[baseline].samples_ms),
            np.asarray(latencies[engine].samples_ms),
            1 - _ERROR / together,
        )
        distinct = not speedup.low <= 1 <= speedup.high
        found.append(
            Comparison(
                engine=engine[0],
                baseline=baseline[0],
                way=engine[1],
                speedup=speedup,
                distinct=distinct,
            )
        )
    return tuple(sorted(found, key=lambda each: each.way.by, reverse=True))
