"""The document of ``trtbuild sensitivity``, and its tables."""

from __future__ import annotations

from trtbuild.engine import Value
from trtbuild.report.document import PolicyReport, PolicyTrial
from trtbuild.report.sections import Column, Section, kept_section, tried_section


class NodeReport(Value, frozen=True, kw_only=True):
    """What the quantization of one node costs and saves.

    ``noise`` is the energy of the error over the output's own, for the output of the model that
    suffers most, with this node alone quantized; ``sqnr_db`` is the same in dB, ``noise_share``
    its part of the sum over all nodes. ``drop`` is that of the metric, ``None`` without one.
    ``measured`` is false where noise and drop are this node's part of those of ``group`` nodes.
    ``macs`` are multiply-accumulates of one call at the ``opt`` shapes. ``float_ms`` and
    ``quantized_ms`` were measured on this machine, ``None`` where the device is absent.
    """

    node: str
    operator: str
    noise: float
    noise_share: float
    sqnr_db: float | None
    drop: float | None
    measured: bool
    group: int
    macs: int
    mac_share: float
    weight_bytes: int
    float_ms: float | None = None
    quantized_ms: float | None = None


class SensitivityReport(Value, frozen=True, kw_only=True):
    """What quantization costs, node by node, worst first.

    ``whole`` is everything quantized. ``front`` has the policies that were measured to draw the
    front, ``estimated`` the estimated SQNR (dB) for every number of nodes kept, in the order of
    noise per multiply-accumulate. ``runs`` is how many groups were measured for ``nodes``.
    """

    recipe: str
    scheme: str
    method: str
    metric: str
    units: int
    runs: int
    whole: PolicyTrial
    nodes: tuple[NodeReport, ...]
    estimated: tuple[tuple[float, float], ...]
    front: tuple[PolicyTrial, ...] = ()
    policy: PolicyReport | None = None
    times_from: str = ""


def sensitivity_sections(report: SensitivityReport) -> tuple[Section, ...]:
    """Return the tables, worst node first."""
    timed = any(node.float_ms is not None for node in report.nodes)
    rows = tuple(_row(node, timed=timed) for node in report.nodes)
    saves = ("#float ms", "#INT8 ms") if timed else ("#weights KiB",)
    names = ("node", "operator", "#SQNR dB", "#noise", "#drop", "", "#MACs", *saves)
    found = [
        Section(
            title=f"Cost of quantizing each node of {report.recipe} alone ({report.scheme}, "
            f"{report.method})",
            columns=tuple(
                Column(name=name.lstrip("#"), numeric=name.startswith("#")) for name in names
            ),
            rows=rows,
            notes=_notes(report),
        )
    ]
    if report.policy is not None:
        found += [tried_section((report.policy,)), kept_section((report.policy,))]
    return tuple(found)


def _notes(report: SensitivityReport) -> tuple[str, ...]:
    whole = report.whole
    measured = sum(node.measured for node in report.nodes)
    sqnr = "no noise" if whole.sqnr_db is None else f"SQNR {whole.sqnr_db:.1f} dB"
    drop = f", drop {whole.drop.value:+.4f}" if whole.drop else ""
    notes = [
        f"everything quantized: {sqnr}{drop}",
        (
            f"{report.runs} groups were measured for {len(report.nodes)} nodes: {measured} "
            f"figures are measured, the others estimated (their part of a group's)"
        ),
        "SQNR of the output that suffers most; noise: part of the sum over all nodes",
    ]
    if report.metric:
        notes.append(f"drop of {report.metric} on {report.units} units of the choosing batches")
    else:
        notes.append("the data has no metric: only SQNR is known")
    if report.times_from:
        notes.append(report.times_from)
    return tuple(notes)


def _row(node: NodeReport, *, timed: bool) -> tuple[str, ...]:
    saves = (
        (_ms(node.float_ms), _ms(node.quantized_ms))
        if timed
        else (f"{node.weight_bytes / 1024:.1f}",)
    )
    return (
        node.node,
        node.operator,
        "-" if node.sqnr_db is None else f"{node.sqnr_db:.1f}",
        f"{100 * node.noise_share:.1f} %",
        "-" if node.drop is None else f"{node.drop:+.4f}",
        "measured" if node.measured else f"estimated of {node.group}",
        f"{100 * node.mac_share:.1f} %",
        *saves,
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
