"""The front of policies as a picture: what is in 8 bits against what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trtbuild.errors import MissingBackendError

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from trtbuild.report.document import PolicyTrial
    from trtbuild.report.sensitivities import SensitivityReport

_STYLE = {
    "svg.hashsalt": "trtbuild",  # ids of elements are random without one
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
}
_LINE, _POINT, _CHOSEN = "#7f9fbf", "#1f4e79", "#c0392b"


def draw_front(report: SensitivityReport, path: Path) -> None:
    """Write the picture to ``path`` (.svg or .png): equal reports give equal bytes.

    Raises:
        MissingBackendError: matplotlib is not installed.
        OSError: ``path`` cannot be written.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415  door: an optional extra
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  as above
        from matplotlib.figure import Figure  # noqa: PLC0415  as above
    except ImportError as error:
        raise MissingBackendError(
            "--plot needs matplotlib, which is not installed here: pip install 'trtbuild[plot]'"
        ) from error
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # its keys are literals there
        drops = [trial for trial in report.front if trial.drop is not None]
        figure = Figure(figsize=(10.5 if drops else 5.6, 3.9), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 2 if drops else 1, squeeze=False)[0]
        _sqnr(axes[0], report)
        if drops:
            _drop(axes[1], report, drops)
        figure.suptitle(f"{report.recipe}, {report.scheme}: what is in INT8, and its cost")
        kind = path.suffix.lstrip(".")
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(path, format=kind, metadata=metadata, dpi=144)


def _sqnr(axes: Axes, report: SensitivityReport) -> None:
    shares, decibels = zip(*report.estimated, strict=True)
    percent = [100 * share for share in shares]
    axes.plot(percent, decibels, color=_LINE, label="estimated from the nodes' costs")
    known = [trial for trial in report.front if trial.sqnr_db is not None]
    axes.plot(
        [100 * trial.mac_share for trial in known],
        [trial.sqnr_db or 0.0 for trial in known],
        "o",
        color=_POINT,
        markersize=4,
        label="measured",
    )
    _mark(axes, report, [trial.sqnr_db for trial in _chosen(report)])
    axes.set_ylabel("SQNR of the worst output, dB")
    _finish(axes, "upper right")


def _drop(axes: Axes, report: SensitivityReport, trials: list[PolicyTrial]) -> None:
    found = [(100 * t.mac_share, t.drop) for t in trials if t.drop is not None]
    axes.errorbar(
        [share for share, _ in found],
        [drop.value for _, drop in found],
        yerr=[
            [drop.value - drop.low for _, drop in found],
            [drop.high - drop.value for _, drop in found],
        ],
        fmt="o",
        color=_POINT,
        ecolor=_LINE,
        elinewidth=1,
        markersize=4,
        label="measured, 95 % interval",
    )
    _mark(axes, report, [trial.drop.value if trial.drop else None for trial in _chosen(report)])
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set_ylabel(f"drop of {report.metric}")
    _finish(axes, "upper left")


def _chosen(report: SensitivityReport) -> list[PolicyTrial]:
    policy = report.policy
    if policy is None:
        return []
    kept = len(policy.kept)
    same = (t for t in policy.trials if (t.kept, t.mac_share) == (kept, policy.mac_share))
    return list(same)[:1]


def _mark(axes: Axes, report: SensitivityReport, values: list[float | None]) -> None:
    if report.policy is not None and values and values[0] is not None:
        share = 100 * report.policy.mac_share
        axes.plot([share], [values[0]], "D", color=_CHOSEN, markersize=6, label="the policy")


def _finish(axes: Axes, corner: Literal["upper left", "upper right"]) -> None:
    axes.set_xlabel("multiply-accumulates in INT8, %")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc=corner)
