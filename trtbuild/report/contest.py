"""What ``trtbuild bench`` found: the document of ``--json``, and what a reader is shown.

The names of the document's fields are a contract: fields may be added, never renamed. A figure
that is missing is ``null``, with the reason beside it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from msgspec.structs import force_setattr

from trtbuild.engine import Value
from trtbuild.errors import GateError
from trtbuild.report.document import LatencyMs
from trtbuild.report.sections import Column, Section
from trtbuild.verification.conditions import Conditions
from trtbuild.verification.contest import Comparison, Way
from trtbuild.verification.intervals import calls_needed
from trtbuild.verification.rates import Rate
from trtbuild.verification.results import GateResult, WarmUp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trtbuild.verification.conditions import Spread

_NOTHING = "-"
_MIB = 1 << 20
_UNITS = {"sm_mhz": "MHz", "memory_mhz": "MHz", "temperature_c": "C", "power_mw": "mW"}
_WORDS = {
    "sm_mhz": "SM clock",
    "memory_mhz": "memory clock",
    "temperature_c": "temperature",
    "power_mw": "power",
}


class Timed(Value, frozen=True, kw_only=True):
    """The latency of one engine, timed in one way."""

    way: Way
    latency_ms: LatencyMs
    warm_up: WarmUp


class Throughput(Value, frozen=True, kw_only=True):
    """The throughput of one engine, and its cost at the price that was given."""

    rate: Rate
    cost_per_million: float | None


class BenchedEngine(Value, frozen=True, kw_only=True):
    """One engine of a contest.

    ``inputs`` has the shapes that it was given, ``data`` where the values are from.
    ``no_cuda_events`` says why only the host's clock timed it, empty where CUDA events did too.
    """

    name: str
    key: str
    sha256: str
    bytes: int
    backend: str
    backend_version: str
    arch: str
    precision_requested: str
    inputs: dict[str, tuple[int, ...]]
    batch_size: int
    data: str
    latency: tuple[Timed, ...]
    throughput: tuple[Throughput, ...]
    no_cuda_events: str = ""


class BenchReport(Value, frozen=True, kw_only=True):
    """Everything that one contest found.

    ``valid`` is false where the device throttled in each of the ``attempts``, and ``None``
    where it does not tell. ``passed``: no gate failed.
    """

    machine: str
    engines: tuple[BenchedEngine, ...]
    comparisons: tuple[Comparison, ...]
    conditions: Conditions
    valid: bool | None
    attempts: int
    price_per_hour: float | None = None
    gates: tuple[GateResult, ...] = ()
    schema: Literal[1] = 1
    passed: bool = False

    def __post_init__(self) -> None:
        """Derive ``passed``."""
        force_setattr(self, "passed", all(gate.passed for gate in self.gates))

    @property
    def exit_code(self) -> int:
        """What the command leaves with: 0, or 5 when a gate failed."""
        return 0 if self.passed else GateError.exit_code


def verdict(report: BenchReport) -> str:
    """Return the one line that says how the contest ended."""
    if not report.passed:
        failed = next(gate for gate in report.gates if not gate.passed)
        return f"FAILED: {failed.name}: {failed.detail}"
    if report.valid is False:
        why = ", ".join(report.conditions.throttling)
        return f"INVALID: the device throttled ({why}) in each of {report.attempts} runs"
    alike = sum(not each.distinct for each in report.comparisons)
    pairs = len(report.comparisons)
    line = (
        f"MEASURED: {len(report.engines)} in one run, {pairs - alike} of {pairs} pairs differ"
    )
    return line if pairs else f"MEASURED: {len(report.engines)} in one run, nothing to compare"


def sections(report: BenchReport) -> tuple[Section, ...]:
    """Return all sections that have something to show, in reading order."""
    found = (
        _engines(report),
        _latency(report),
        _comparisons(report),
        _throughput(report),
        _gates(report),
        _conditions(report),
    )
    return tuple(section for section in found if section.rows or section.notes)


def _columns(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name=name.lstrip("#"), numeric=name.startswith("#")) for name in names)


def _engines(report: BenchReport) -> Section:
    rows = tuple(
        (
            each.name,
            f"{each.backend}:{each.arch}",
            each.backend_version,
            f"{each.bytes / _MIB:.1f}",
            "; ".join(f"{name} {'x'.join(map(str, s))}" for name, s in each.inputs.items()),
        )
        for each in report.engines
    )
    data = dict.fromkeys(each.data for each in report.engines)
    notes = [f"inputs: {text}" for text in data]
    if len({str(each.inputs) for each in report.engines}) > 1:
        notes.append("inputs of different shapes are different work: not compared")
    return Section(
        title="Engines",
        columns=_columns("engine", "target", "library", "#MiB", "inputs"),
        rows=rows,
        notes=tuple(notes),
    )


def _latency(report: BenchReport) -> Section:
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for engine in report.engines:
        for each in engine.latency:
            found = each.latency_ms
            values = {"p50": found.p50, "p95": found.p95, "p99": found.p99}
            cells = [_interval(value, *found.intervals[name]) for name, value in values.items()]
            rows.append((engine.name, str(each.way), *cells, str(found.samples)))
            notes += _doubts(f"{engine.name}, {each.way}", each)
    loads = {each.latency_ms.load_average for e in report.engines for each in e.latency}
    cpus = {each.latency_ms.cpu_count for e in report.engines for each in e.latency}
    busy = max((load for load in loads if load is not None), default=0.0)
    if busy > max(cpus, default=0):
        notes.append(
            f"busy machine (load average {busy:.1f} on {max(cpus)} cores): absolute times "
            "are too long; comparisons hold, since all took turns"
        )
    return Section(
        title="Latency, ms per call (in turns, one run; 95 % intervals)",
        columns=_columns("engine", "timed by", "#p50", "#p95", "#p99", "#calls"),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _doubts(label: str, timed: Timed) -> Iterable[str]:
    if timed.way.host_bound:
        yield f"{label}: the GPU cannot be kept waiting: this may be the time of the host"
    if not timed.warm_up.settled:
        yield (
            f"{label}: times were still changing after {timed.warm_up.seconds:.1f} s of "
            "warm-up: give it more with --warmup"
        )
    needed = calls_needed(99)
    if timed.latency_ms.samples < needed:
        yield (
            f"{label}: {timed.latency_ms.samples} calls put no upper bound on p99 "
            f"({needed} do): give more --seconds"
        )


def _comparisons(report: BenchReport) -> Section:
    rows = tuple(
        (
            each.engine,
            each.baseline,
            str(each.way),
            f"{each.speedup.value:.2f}x",
            f"[{each.speedup.low:.2f}, {each.speedup.high:.2f}]",
            _told(each),
        )
        for each in report.comparisons
    )
    return Section(
        title="Speed of an engine over another (medians; all intervals together 95 %)",
        columns=_columns("engine", "over", "timed by", "#speed", "#interval", "verdict"),
        rows=rows,
    )


def _told(comparison: Comparison) -> str:
    if not comparison.distinct:
        return "cannot be told apart"
    return "faster" if comparison.speedup.value > 1 else "slower"


def _throughput(report: BenchReport) -> Section:
    rows: list[tuple[str, ...]] = []
    notes: dict[str, None] = {}
    for engine in report.engines:
        for each in engine.throughput:
            rate, energy, speed = each.rate, each.rate.energy, each.rate.inferences_per_s
            if 0 < rate.graph_share < 1:
                notes[
                    f"{engine.name}, {_threads(rate.threads)}: {100 * rate.graph_share:.0f} % "
                    "of the calls were CUDA graphs"
                ] = None
            if energy is None:
                notes[f"no energy: {rate.no_energy}"] = None
            if speed.high - speed.low > speed.value:
                notes[
                    f"{engine.name}, {_threads(rate.threads)}: {rate.calls} calls say little "
                    "of its throughput, their windows differ that much: give more --seconds"
                ] = None
            share = energy.idle_share if energy else None
            rows.append(
                (
                    engine.name,
                    str(rate.threads),
                    _interval(speed.value, speed.low, speed.high),
                    _percentile(rate, "p50", rate.p50_ms),
                    _percentile(rate, "p99", rate.p99_ms),
                    _rounded(energy.mj_per_inference.value, 3) if energy else _NOTHING,
                    _NOTHING if share is None else f"{100 * share:.0f} %",
                    _NOTHING
                    if each.cost_per_million is None
                    else _rounded(each.cost_per_million, 3),
                )
            )
    if report.price_per_hour is not None:
        notes[f"cost at {report.price_per_hour:g} per hour of this machine, fully used"] = None
    notes["an inference is one sample: a call of batch size n is n of them"] = None
    names = (
        "engine",
        "#threads",
        "#inferences/s",
        "#p50 ms",
        "#p99 ms",
        "#mJ each",
        "#idle",
        "#cost/1e6",
    )
    kept = [i for i, _ in enumerate(names) if i < 5 or any(row[i] != _NOTHING for row in rows)]  # noqa: PLR2004  energy and cost may be missing in all rows
    return Section(
        title="Throughput (closed loop: each thread waits for its result)",
        columns=tuple(_columns(*names)[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in rows),
        notes=tuple(notes),
    )


def _percentile(rate: Rate, name: str, value: float) -> str:
    found = rate.intervals.get(name)
    return _interval(value, *found) if found else _rounded(value, 4)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _gates(report: BenchReport) -> Section:
    rows = tuple(
        (gate.name, "passed" if gate.passed else "FAILED", gate.detail) for gate in report.gates
    )
    notes = tuple(f"try: {line}" for gate in report.gates for line in gate.advice)
    return Section(
        title="Gates", columns=_columns("gate", "result", "detail"), rows=rows, notes=notes
    )


def _conditions(report: BenchReport) -> Section:
    found = report.conditions
    figures: dict[str, Spread | None] = {
        "sm_mhz": found.sm_mhz,
        "memory_mhz": found.memory_mhz,
        "temperature_c": found.temperature_c,
        "power_mw": found.power_mw,
    }
    rows = tuple(
        (_WORDS[name], f"{each.low:g}", f"{each.median:g}", f"{each.high:g}", _UNITS[name])
        for name, each in figures.items()
        if each is not None
    )
    notes = []
    if found.device:
        said = ", ".join(f"{word} ({n} times)" for word, n in (found.reasons or {}).items())
        notes.append(f"{found.device}, {found.readings} readings; clocks set by: {said or '-'}")
    if report.valid is None:
        notes.append(f"not known whether it throttled: {found.absent.get('reasons', '')}")
    elif not report.valid:
        notes.append(
            f"INVALID: clocks were lowered ({', '.join(found.throttling)}). Cool the device, "
            "or lock a clock that it can hold: nvidia-smi --lock-gpu-clocks"
        )
    if found.device:
        notes += [f"no {name}: {reason}" for name, reason in found.absent.items()]
    notes.append(f"machine: {report.machine}")
    return Section(
        title="Conditions",
        columns=_columns("figure", "#least", "#median", "#most", "unit"),
        rows=rows,
        notes=tuple(notes),
    )


def _interval(value: float, low: float, high: float) -> str:
    return f"{_rounded(value, 4)} [{_rounded(low, 3)}, {_rounded(high, 3)}]"


def _rounded(value: float, digits: int) -> str:
    """Return a number of ``digits`` significant digits, never in powers of ten."""
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):.{max(places, 0)}f}"
