"""What people read of a night, or of a plan: tables, what failed, and one line at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.engine import Value
from trtbuild.report.markdown import page_to_markdown, to_markdown
from trtbuild.report.sections import DEVICE, TWIN, Column, Section, int8_share

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trtbuild.farm.matrix import Failure, RecipePlan
    from trtbuild.farm.nightly import Night
    from trtbuild.report.document import EngineReport

_NOTHING = "-"


class Summary(Value, frozen=True, kw_only=True):
    """Sections with something to show, in reading order, and the line that ends them."""

    heading: str
    sections: tuple[Section, ...]
    ending: str


def of_night(night: Night) -> Summary:
    """Return what a person reads of a night; figures of a twin have a table of their own."""
    engines = [(report.recipe, each) for report in night.reports for each in report.engines]
    skipped = [
        (report.recipe, each.target, each.reason)
        for report in night.reports
        for each in report.skipped_targets
    ]
    found = [
        _on_device([row for row in engines if row[1].verification.measured_on == "device"]),
        _on_twin([row for row in engines if row[1].verification.measured_on == "twin"]),
        _failed_gates(engines),
        _skipped(skipped, strict=night.strict),
        _errors(night.failures),
    ]
    return Summary(
        heading="trtbuild nightly",
        sections=tuple(section for section in found if section.rows or section.notes),
        ending=_verdict(night, engines, len(skipped)),
    )


def of_plan(plans: Sequence[RecipePlan]) -> Summary:
    """Return what a person reads of what would be built."""
    rows = tuple(
        (plan.recipe, cell.target, cell.state, cell.reason or _NOTHING)
        for plan in plans
        for cell in plan.cells
    )
    table = Section(
        title="Recipes and targets, on this machine",
        columns=_columns("recipe", "target", "state", "reason"),
        rows=rows,
    )
    errors = _errors({plan.recipe: plan.failure for plan in plans if plan.failure is not None})
    states = [row[2] for row in rows]
    counts = [f"{states.count(state)} {state}" for state in ("to build", "cached", "skipped")]
    if errors.notes:
        counts.append(_count(len(errors.notes), "recipe") + " in error")
    return Summary(
        heading="trtbuild nightly: plan",
        sections=tuple(part for part in (table, errors) if part.rows or part.notes),
        ending=", ".join(counts),
    )


def night_to_markdown(night: Night) -> str:
    """Return a night as Markdown: its summary, then the report of every recipe that built."""
    summary = of_night(night)
    reports = [to_markdown(report) for report in night.reports if report.engines]
    page = page_to_markdown(summary.heading, summary.sections, summary.ending)
    return "\n".join([page, *reports])


def _on_device(engines: Iterable[tuple[str, EngineReport]]) -> Section:
    return Section(
        title=f"Engines on the {DEVICE}",
        columns=_columns(
            "recipe", "target", "result", "", "#INT8 MACs", "#drop", "#p50 ms", "#speedup"
        ),
        rows=tuple((*_cells(recipe, each), *_times(each)) for recipe, each in engines),
    )


def _on_twin(engines: Iterable[tuple[str, EngineReport]]) -> Section:
    return Section(
        title=f"Engines judged by the {TWIN}: accuracy only, no latency",
        columns=_columns("recipe", "target", "result", "", "#INT8 MACs", "#drop"),
        rows=tuple(_cells(recipe, each) for recipe, each in engines),
    )


def _cells(recipe: str, engine: EngineReport) -> tuple[str, ...]:
    return (
        recipe,
        engine.target,
        "passed" if engine.verification.passed else "FAILED",
        "cached" if engine.cached else "built",
        int8_share(engine),
        _drop(engine),
    )


def _drop(engine: EngineReport) -> str:
    for estimate in engine.verification.metrics.values():
        return "NaN" if estimate.drop is None else f"{estimate.drop.value:+.4f}"
    return _NOTHING


def _times(engine: EngineReport) -> tuple[str, str]:
    found = engine.verification
    p50 = _NOTHING if found.latency_ms is None else f"{found.latency_ms.p50:.3f}"
    return p50, _NOTHING if found.speedup is None else f"{found.speedup.value:.2f}x"


def _failed_gates(engines: Iterable[tuple[str, EngineReport]]) -> Section:
    notes: list[str] = []
    for recipe, engine in engines:
        label = TWIN if engine.verification.measured_on == "twin" else DEVICE
        for gate in engine.verification.gates:
            if not gate.passed:
                where = f"{recipe}, {engine.target} on the {label}"
                notes.append(f"{where}: {gate.name} failed: {gate.detail}")
                notes += [f"    try: {line}" for line in gate.advice]
    return Section(title="Gates that failed, and what to try", notes=tuple(notes))


def _skipped(rows: Iterable[tuple[str, str, str]], *, strict: bool) -> Section:
    consequence = ": with --strict they fail the night" if strict else ""
    return Section(
        title=f"Targets that were skipped{consequence}",
        columns=_columns("recipe", "target", "reason"),
        rows=tuple(rows),
    )


def _errors(failures: Mapping[str, Failure]) -> Section:
    notes = (
        f"{recipe} (exit code {failure.exit_code}): {' '.join(failure.message.split())}"
        for recipe, failure in failures.items()
    )
    return Section(title="Recipes in error", notes=tuple(notes))


def _verdict(night: Night, engines: Sequence[tuple[str, EngineReport]], skipped: int) -> str:
    bad = sum(not each.verification.passed for _, each in engines)
    parts = [f"{_count(len(engines), 'engine')} of {_count(len(night.outcomes), 'recipe')}"]
    if bad:
        parts.append(f"{_count(bad, 'engine')} failed a gate")
    if night.failures:
        parts.append(f"{_count(len(night.failures), 'recipe')} in error")
    if skipped:
        parts.append(f"{_count(skipped, 'target')} skipped")
    return f"{'PASSED' if night.passed else 'FAILED'}: {', '.join(parts)}"


def _columns(*names: str) -> tuple[Column, ...]:
    """Return columns; a name that starts with ``#`` holds numbers."""
    return tuple(Column(name=name.lstrip("#"), numeric=name.startswith("#")) for name in names)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
