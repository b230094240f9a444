"""What sessions count, as text in Prometheus' exposition format 0.0.4."""

from __future__ import annotations

import bisect
import itertools
import threading
from typing import TYPE_CHECKING, Literal

import msgspec

from trtbuild.engine import Value
from trtbuild.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]

Counter = Literal[
    "context_waits",
    "context_wait_seconds",
    "graph_captures",
    "graph_launches",
    "graph_fallbacks",
    "bytes_to_device",
    "bytes_from_device",
    "warm_up_failures",
]
Gauge = Literal["contexts", "contexts_in_use", "contexts_limit", "device_memory_bytes"]

_COUNTERS: Mapping[Counter, str] = {
    "context_waits": "Calls that found every execution context in use.",
    "context_wait_seconds": "Time that calls waited for an execution context.",
    "graph_captures": "CUDA graphs captured.",
    "graph_launches": "Calls that replayed a CUDA graph.",
    "graph_fallbacks": "Captures that failed; their calls run without a graph.",
    "bytes_to_device": "Bytes of inputs copied from the host to the device.",
    "bytes_from_device": "Bytes of outputs copied from the device to the host.",
    "warm_up_failures": "Warm-up runs that the model refused.",
}
_GAUGES: Mapping[Gauge, str] = {
    "contexts": "Execution contexts that exist.",
    "contexts_in_use": "Execution contexts that serve a call now.",
    "contexts_limit": "Execution contexts that may exist.",
    "device_memory_bytes": "Device memory for scratch space and tensors of all contexts.",
}
_ERRORS = "Calls that failed, by the class of the error."
_LATENCY = "Time of a call in this process, waiting and copies included, without failed ones."

_BUCKETS_S = tuple(base * 10**power for power in range(-5, 1) for base in (1.0, 2.5, 5.0))
"""10 µs to 5 s, three to a decade."""


class Family(Value, frozen=True, kw_only=True):
    """One metric: its name without prefix, its type, what it means, its samples.

    A sample is the rest of its name, its labels in order, and its value.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: tuple[tuple[str, Labels, float], ...]


class Metrics:
    """The figures of one session, ``labels`` on each; threads may share it.

    ``gauges``, and the counters that others keep (``asked``), are asked when the text is made.
    """

    def __init__(
        self,
        labels: Mapping[str, str],
        gauges: Mapping[Gauge, Callable[[], float]],
        asked: Mapping[Counter, Callable[[], float]],
    ) -> None:
        self._labels = tuple(labels.items())
        self._gauges = dict(gauges)
        self._asked = dict(asked)
        self._lock = threading.Lock()
        self._counts: dict[Counter, float] = dict.fromkeys(_COUNTERS, 0)
        self._errors: dict[str, int] = {}
        self._buckets = [0] * (len(_BUCKETS_S) + 1)
        self._seconds = 0.0

    def label(self, name: str, value: str) -> None:
        """Put one more label on every figure."""
        self._labels = (*self._labels, (name, value))

    def add(self, name: Counter, amount: float = 1) -> None:
        """Add to one counter."""
        with self._lock:
            self._counts[name] += amount

    def call(self, seconds: float, to_device: int = 0, from_device: int = 0) -> None:
        """Count a call that returned, with the bytes that it copied."""
        bucket = bisect.bisect_left(_BUCKETS_S, seconds)
        with self._lock:
            self._buckets[bucket] += 1
            self._seconds += seconds
            self._counts["bytes_to_device"] += to_device
            self._counts["bytes_from_device"] += from_device

    def error(self, error: BaseException) -> None:
        """Count a call that failed."""
        name = type(error).__name__
        with self._lock:
            self._errors[name] = self._errors.get(name, 0) + 1

    def value(self, name: Counter) -> float:
        """Return one counter.

        Raises:
            UsageError: there is none of this name.
        """
        if name not in self._counts:
            raise UsageError(
                f"the counter {name!r} of a session: expected one of {', '.join(_COUNTERS)}"
            )
        return self._asked[name]() if name in self._asked else self._counts[name]

    @property
    def calls(self) -> int:
        """How many calls returned."""
        return sum(self._buckets)

    def families(self) -> tuple[Family, ...]:
        """Return every figure."""
        gauges = tuple(
            Family(
                name=name,
                kind="gauge",
                help=_GAUGES[name],
                samples=(("", self._labels, float(ask())),),
            )
            for name, ask in self._gauges.items()
        )
        return (*self.totals(), *gauges)

    def totals(self) -> tuple[Family, ...]:
        """Return, of one moment, what only grows: counters and the histogram."""
        labels = self._labels
        with self._lock:
            counters = [
                Family(
                    name=f"{name}_total",
                    kind="counter",
                    help=text,
                    samples=(("", labels, self.value(name)),),
                )
                for name, text in _COUNTERS.items()
            ]
            errors = tuple(
                ("", (*labels, ("error", name)), float(count))
                for name, count in sorted(self._errors.items())
            )
            latency = self._latency()
        return (
            *counters,
            Family(name="errors_total", kind="counter", help=_ERRORS, samples=errors),
            latency,
        )

    def _latency(self) -> Family:
        samples = []
        total = 0
        for bound, count in zip((*_BUCKETS_S, float("inf")), self._buckets, strict=True):
            total += count
            le = "+Inf" if bound == float("inf") else f"{bound:g}"
            samples.append(("_bucket", (*self._labels, ("le", le)), float(total)))
        samples.append(("_sum", self._labels, self._seconds))
        samples.append(("_count", self._labels, float(total)))
        return Family(
            name="latency_seconds", kind="histogram", help=_LATENCY, samples=tuple(samples)
        )


def render(sessions: Iterable[Metrics]) -> str:
    """Return the figures of several sessions as one text, each metric described once."""
    return written(merged(session.families() for session in sessions))


def merged(each: Iterable[tuple[Family, ...]]) -> tuple[Family, ...]:
    """Return the figures of several sessions as one: what has the same labels is added up.

    Two samples of one name and labels are an error to a scraper, which drops the whole text.
    """
    found: dict[str, Family] = {}
    sums: dict[str, dict[tuple[str, Labels], float]] = {}
    for family in itertools.chain.from_iterable(each):
        found[family.name] = family
        samples = sums.setdefault(family.name, {})
        for suffix, labels, value in family.samples:
            samples[suffix, labels] = samples.get((suffix, labels), 0) + value
    return tuple(
        msgspec.structs.replace(
            family, samples=tuple((*place, value) for place, value in sums[name].items())
        )
        for name, family in found.items()
    )


def written(families: Iterable[Family]) -> str:
    """Return figures, one family per name, in Prometheus' exposition format 0.0.4."""
    return "".join(
        f"# HELP trtbuild_{family.name} {family.help}\n"
        f"# TYPE trtbuild_{family.name} {family.kind}\n"
        + "".join(
            f"trtbuild_{family.name}{suffix}{{{_inside(labels)}}} {value:.12g}\n"
            for suffix, labels, value in family.samples
        )
        for family in families
    )


def _inside(labels: Labels) -> str:
    return ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
