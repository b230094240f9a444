"""What a reader is shown of a report, in which order and in which words; drawing is elsewhere.

Figures of a twin stand in sections whose title says so, and a twin has no row in the latency
table, so that nobody takes them for the device's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.engine import PACKED, Value
from trtbuild.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trtbuild.report.document import (
        EngineReport,
        EngineSignature,
        LatencyMs,
        PolicyReport,
        Report,
        Verification,
    )
    from trtbuild.verification.results import (
        GateResult,
        Interval,
        MetricEstimate,
        TensorErrors,
    )

TWIN = "twin (target device absent)"
DEVICE = "target device"

_DIGEST_DIGITS = 8
_BYTES_PER_KIB = 1024
_NOTHING = "-"
_WORST = 5


class Column(Value, frozen=True, kw_only=True):
    """A column's heading, and whether it holds numbers (aligned to the right)."""

    name: str
    numeric: bool = False


class Section(Value, frozen=True, kw_only=True):
    """A titled table, with sentences below it; each row has one cell per column."""

    title: str
    columns: tuple[Column, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()


def measured_on(verification: Verification) -> str:
    """Return the label of everything that was measured for an engine."""
    return TWIN if verification.measured_on == "twin" else DEVICE


def verdict(report: Report) -> str:
    """Return the one line that says how the run ended."""
    failed = sum(not engine.verification.passed for engine in report.engines)
    twins = sum(
        engine.verification.measured_on == "twin" and engine.verification.samples > 0
        for engine in report.engines
    )
    engines = counted(len(report.engines), "engine")
    if failed:
        line = f"FAILED: {failed} of {engines} failed a gate"
    else:
        line = f"PASSED: {engines}, no gate failed" if report.engines else "PASSED: no engine"
        skipped = sum(g.skipped for each in report.engines for g in each.verification.gates)
        line += f", {counted(skipped, 'gate')} not judged" if skipped else ""
    left = sum(each.stage == "sign" for each in report.findings)
    line += f", NOT SIGNED: see {counted(left, 'finding')}" if left else ""
    return f"{line}; {twins} judged by the {TWIN}" if twins else line


def sections(report: Report) -> tuple[Section, ...]:
    """Return all sections that have something to show, in reading order."""
    found = [
        _stages(report),
        _parity(report),
        _sparsity(report),
        _calibration(report),
        tried_section(report.policies),
        kept_section(report.policies),
        _engines(report),
        *(part for group in _groups(report) for part in _verification(*group)),
        _latency(report),
        _failures(report),
        _skipped(report),
        _findings(report),
    ]
    return tuple(section for section in found if section.rows or section.notes)


def _columns(*names: str) -> tuple[Column, ...]:
    """Return columns; a name that starts with ``#`` holds numbers."""
    return tuple(Column(name=name.lstrip("#"), numeric=name.startswith("#")) for name in names)


def _stages(report: Report) -> Section:
    rows = tuple(
        (
            stage.name,
            stage.key[:_DIGEST_DIGITS],
            "cached" if stage.cached else "computed",
            f"{stage.seconds:.2f}",
        )
        for stage in report.stages
    )
    note = "full cache hit: nothing was computed, every figure below is from the store"
    return Section(
        title="Stages",
        columns=_columns("stage", "key", "result", "#seconds"),
        rows=rows,
        notes=(note,) if report.full_cache_hit else (),
    )


def _parity(report: Report) -> Section:
    parity = report.export_parity
    title = "Export parity (framework against exported ONNX graph, same inputs)"
    if parity is None:
        return Section(title=title)
    rows = tuple(
        (
            each.output,
            str(each.batch_size),
            f"{each.max_abs:.2e}",
            _optional(each.max_relative, ".2e"),
            each.verdict,
        )
        for each in parity.outputs
    )
    notes = [f"tolerance: {parity.tolerance:g} of the output's own scale"]
    if any(each.verdict == "says nothing" for each in parity.outputs):
        notes.append(
            "says nothing: the output is zero everywhere, any graph of zeros would agree"
        )
    return Section(
        title=title,
        columns=_columns("output", "#batch", "#max abs", "#of scale", "verdict"),
        rows=rows,
        notes=tuple(notes),
    )


def _sparsity(report: Report) -> Section:
    found = report.sparsity
    if found is None:
        return Section(title="Sparsity")
    lost = sorted(found.lost.items(), key=lambda item: -item[1])[:_WORST]
    total = len(found.sparse) + len(found.dense)
    dense: dict[str, list[str]] = {}
    for each in found.dense:
        dense.setdefault(each.reason, []).append(each.node)
    share = f"{100 * found.weight_share:.1f} % of their weights"
    notes = [
        f"{len(found.sparse)} of {counted(total, 'layer')}, {share}, by {found.criterion}",
        *(f"dense, since {reason}: {', '.join(nodes)}" for reason, nodes in dense.items()),
    ]
    if any(engine.backend == "onnxruntime" for engine in report.engines):
        notes.append("ONNX Runtime has no sparse kernels: there the pattern brings no speed")
    return Section(
        title=f"Sparsity {found.pattern}",
        columns=_columns("most damaged layers", "#output energy lost") if lost else (),
        rows=tuple((node, f"{100 * part:.2f} %") for node, part in lost),
        notes=tuple(notes),
    )


def _calibration(report: Report) -> Section:
    rows = tuple(
        (
            row.method,
            row.scheme,
            _optional(row.metric, ".4f"),
            _optional(row.sqnr_db, ".1f"),
            "chosen" if row.chosen else "",
        )
        for row in report.calibration
    )
    tried = any(row.sqnr_db is not None for row in report.calibration)
    how = " (all methods from one pass, tried on held-out data)" if tried else ""
    return Section(
        title=f"Calibration{how}",
        columns=_columns("method", "scheme", "#metric", "#SQNR dB", ""),
        rows=rows,
    )


def tried_section(policies: Sequence[PolicyReport]) -> Section:
    """Return the policies that were tried, with what they lost."""
    rows = tuple(
        (
            policy.scheme,
            str(trial.kept),
            f"{100 * trial.mac_share:.1f} %",
            _optional(trial.sqnr_db, ".1f"),
            *(_drop_cells(trial.drop) if policy.units else (_NOTHING, _NOTHING)),
            "inside" if trial.inside else "outside",
        )
        for policy in policies
        for trial in policy.trials
    )
    notes = (
        (f"{policy.units} units of the batches that choose; " if policy.units else "")
        + f"{policy.runs} groups of nodes were measured"
        for policy in policies
        if policy.runs
    )
    return Section(
        title="Policies that were tried (on the batches that choose)",
        columns=_columns(
            "scheme", "#nodes kept", "#INT8 MACs", "#SQNR dB", "#drop", "#95 % interval", ""
        ),
        rows=rows,
        notes=tuple(dict.fromkeys(notes)),
    )


def kept_section(policies: Sequence[PolicyReport]) -> Section:
    """Return the nodes that policies keep in floating point, and why."""
    rows = tuple(
        (
            policy.scheme,
            node.node,
            f"{100 * node.mac_share:.1f} %",
            _optional(node.sqnr_db, ".1f"),
            _optional(node.drop, "+.4f"),
            "" if node.sqnr_db is None else "measured" if node.measured else "estimated",
        )
        for policy in policies
        for node in policy.kept
    )
    return Section(
        title="Policy: nodes kept in floating point, and what quantizing each alone costs",
        columns=_columns("scheme", "node", "#MACs", "#SQNR dB", "#drop", ""),
        rows=rows,
        notes=tuple(f"{policy.scheme}: {policy.reason}" for policy in policies),
    )


def _drop_cells(drop: Interval | None) -> tuple[str, str]:
    if drop is None:
        return "NaN", _NOTHING
    return f"{drop.value:+.4f}", f"[{drop.low:+.4f}, {drop.high:+.4f}]"


def _engines(report: Report) -> Section:
    rows = tuple(
        (
            _joined([engine.target]),
            _layers(engine),
            int8_share(engine),
            str(engine.fused_layers),
            _size(engine.bytes),
            engine.sha256[:_DIGEST_DIGITS],
            "cached" if engine.cached else "built",
        )
        for engine in report.engines
    )
    asked = ", ".join(dict.fromkeys(engine.precision_requested for engine in report.engines))
    return Section(
        title=f"Engines, asked to compute in {asked}",
        columns=_columns(
            "target", "compute layers", "#INT8 MACs", "#fused", "#size", "sha256", ""
        ),
        rows=rows,
        notes=tuple(dict.fromkeys(signed_note(engine.signatures) for engine in report.engines)),
    )


def int8_share(engine: EngineReport) -> str:
    """Return the share of multiplications in INT8, or a dash where INT8 was not asked for."""
    asked = engine.precision_requested == "int8" or engine.int8_mac_share > 0
    return f"{100 * engine.int8_mac_share:.1f} %" if asked else _NOTHING


def signed_note(signatures: Sequence[EngineSignature]) -> str:
    """Return the sentence that says who signed an engine, or that nobody did."""
    if not signatures:
        return "unsigned: only who built it loads it, on this machine, by a developer's policy"
    names = [
        f"{each.name} ({each.role or 'not in the policy'}, {each.keyid[:_DIGEST_DIGITS]})"
        if each.holds
        else f"unknown key {each.keyid[:_DIGEST_DIGITS]} (not verified)"
        for each in signatures
    ]
    return f"signed by {', '.join(names)}"


def _groups(report: Report) -> tuple[tuple[str, tuple[EngineReport, ...]], ...]:
    device = tuple(e for e in report.engines if e.verification.measured_on == "device")
    twin = tuple(e for e in report.engines if e.verification.measured_on == "twin")
    groups = ((f"on the {DEVICE}", device), (f"on the {TWIN}", twin))
    return tuple(group for group in groups if group[1])


def _verification(where: str, engines: tuple[EngineReport, ...]) -> Iterable[Section]:
    metrics = _merged(
        (engine.target, (name, *_metric_cells(found)))
        for engine in engines
        for name, found in engine.verification.metrics.items()
    )
    outputs = _merged(
        (engine.target, _output_cells(errors))
        for engine in engines
        for errors in engine.verification.outputs
    )
    gates = _merged(
        (engine.target, _gate_cells(gate))
        for engine in engines
        for gate in engine.verification.gates
    )
    yield Section(
        title=f"Accuracy {where}",
        columns=_columns(
            "target", "metric", "#framework", "#engine", "#drop", "#95 % interval"
        ),
        rows=metrics,
        notes=_accuracy_notes(engines),
    )
    yield Section(
        title=f"Outputs against the framework {where}",
        columns=_columns(
            "target", "output", "#cosine", "#SQNR dB", "#max abs", "#argmax", "#NaN/Inf"
        ),
        rows=outputs,
    )
    yield Section(
        title=f"Gates {where}",
        columns=_columns("target", "gate", "result", "detail"),
        rows=gates,
    )


def _accuracy_notes(engines: Sequence[EngineReport]) -> tuple[str, ...]:
    notes: dict[str, None] = {}
    if any(engine.verification.measured_on == "twin" for engine in engines):
        notes["the graph that was built ran on ONNX Runtime: accuracy only, no latency"] = None
    for engine in engines:
        found = engine.verification
        for name, metric in found.metrics.items():
            changed = f"{metric.worse_units} worse and {metric.better_units} better"
            notes[f"{name}: of {metric.units} units, {changed} than the framework"] = None
        if found.twin_reason:
            notes[found.twin_reason] = None
        if not found.accuracy_gated:
            reason = (
                "the recipe sets no max_drop" if found.metrics else "the data has no metric"
            )
            notes[f"nothing was gated on accuracy: {reason}"] = None
    return tuple(notes)


def _metric_cells(found: MetricEstimate) -> tuple[str, ...]:
    engine = found.engine
    value = "NaN" if engine is None else f"{engine.value:.4f}"
    return (f"{found.reference.value:.4f}", value, *_drop_cells(found.drop))


def _output_cells(errors: TensorErrors) -> tuple[str, ...]:
    exact = errors.max_abs == 0 and errors.nonfinite == 0
    return (
        errors.output,
        _optional(errors.cosine, ".6f"),
        "exact" if exact else _optional(errors.sqnr_db, ".1f"),
        f"{errors.max_abs:.3g}",
        _optional(errors.argmax_agreement, ".4f"),
        str(errors.nonfinite),
    )


def _gate_cells(gate: GateResult) -> tuple[str, ...]:
    return gate.name, gate_word(gate), gate.detail


def gate_word(gate: GateResult) -> str:
    """Return ``passed``, ``FAILED`` or ``skipped``."""
    if gate.skipped:
        return "skipped"
    return "passed" if gate.passed else "FAILED"


def _latency(report: Report) -> Section:
    rows: list[tuple[str, ...]] = []
    notes: dict[str, None] = {}
    for engine in report.engines:
        found = engine.verification
        base, target = found.baseline_latency_ms, _joined([engine.target])
        if base is not None:
            rows.append((target, found.baseline, *_latency_cells(base), ""))
        if found.latency_ms is not None:
            speedup = found.speedup
            times = "" if speedup is None else f"{speedup.value:.2f}x"
            between = "" if speedup is None else f" [{speedup.low:.2f}, {speedup.high:.2f}]"
            asked = engine.precision_requested
            rows.append((target, asked, *_latency_cells(found.latency_ms), times + between))
            notes[_conditions(found.latency_ms)] = None
    return Section(
        title=f"Latency on the {DEVICE}, ms per call (interleaved, one run)",
        columns=_columns("target", "as", "#batch", "#p50", "#p95", "#p99", "#speedup [95 %]"),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _conditions(latency: LatencyMs) -> str:
    load_average = latency.load_average or 0.0
    busy = "; busy machine, trust the speedup only" if load_average > latency.cpu_count else ""
    load = (
        "" if latency.load_average is None else f", load average {load_average:.1f} before it"
    )
    processors = counted(latency.cpu_count, "processor")
    return f"{latency.samples} timed calls each, {processors}{load}{busy}"


def _latency_cells(latency: LatencyMs) -> tuple[str, ...]:
    percentiles = (latency.p50, latency.p95, latency.p99)
    return str(latency.batch_size), *(f"{value:.3f}" for value in percentiles)


def _failures(report: Report) -> Section:
    notes: list[str] = []
    for where, engines in _groups(report):
        failed = _merged(
            (engine.target, (gate.name, gate.detail, *gate.advice))
            for engine in engines
            for gate in engine.verification.gates
            if not gate.passed
        )
        for targets, name, detail, *advice in failed:
            notes.append(f"{targets} {where}: {name} failed: {detail}")
            notes += [f"    try: {line}" for line in advice]
    return Section(title="What failed, and what to try", notes=tuple(notes))


def _skipped(report: Report) -> Section:
    rows = tuple((each.target, each.reason) for each in report.skipped_targets)
    return Section(
        title="Targets that were skipped", columns=_columns("target", "reason"), rows=rows
    )


def _findings(report: Report) -> Section:
    """Return the findings; what was found for several targets alike stands there once."""
    stages: dict[tuple[str, ...], list[str]] = {}
    for each in report.findings:
        what, _, rest = each.stage.partition(" ")
        target, _, precision = rest.rpartition(" ")
        alike = (what, precision, each.text) if ":" in target else (each.stage, "", each.text)
        stages.setdefault(alike, []).append(target)
    rows = tuple(
        (f"{what} {_joined(targets)} {precision}" if precision else what, text)
        for (what, precision, text), targets in stages.items()
    )
    return Section(title="Findings", columns=_columns("stage", "finding"), rows=rows)


def _merged(
    rows: Iterable[tuple[str, tuple[str, ...]]],
) -> tuple[tuple[str, ...], ...]:
    """Return rows with the target in front; equal figures share a row and list their targets.

    Several architectures of one backend are built from one graph, and have one twin.
    """
    targets: dict[tuple[str, ...], list[str]] = {}
    for target, cells in rows:
        targets.setdefault(cells, []).append(target)
    return tuple((_joined(names), *cells) for cells, names in targets.items())


def _joined(targets: Sequence[str]) -> str:
    archs: dict[str, list[str]] = {}
    for target in targets:
        backend, _, arch = target.partition(":")
        archs.setdefault(backend, []).append(arch)
    return "; ".join(f"{backend}: {', '.join(names)}" for backend, names in archs.items())


def _layers(engine: EngineReport) -> str:
    """Return the counts by precision, what was asked for in front."""
    asked = [engine.precision_requested] if engine.precision_requested not in PACKED else []
    counts = dict.fromkeys(asked, 0) | engine.precision_achieved
    text = ", ".join(f"{count} {precision}" for precision, count in counts.items())
    packed = ", ".join(f"{n} with {word} weights" for word, n in engine.weights_packed.items())
    return f"{text} ({packed})" if packed else text


def _size(size_bytes: int) -> str:
    kib = size_bytes / _BYTES_PER_KIB
    return f"{kib:.0f} KiB" if kib < _BYTES_PER_KIB else f"{kib / _BYTES_PER_KIB:.1f} MiB"


def _optional(value: float | None, form: str) -> str:
    return _NOTHING if value is None else format(value, form)
