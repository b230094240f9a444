"""Parts of the flow that have a command of their own: the export alone, the ranges alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtbuild.engine import Value
from trtbuild.errors import UsageError
from trtbuild.graph.model import load_model, read_graph, save_model
from trtbuild.pipeline.context import working
from trtbuild.pipeline.quantizing import measured
from trtbuild.pipeline.simplify import optimized
from trtbuild.pipeline.source import export_source, open_data
from trtbuild.pipeline.sparse import sparsified
from trtbuild.quantization.methods import METHODS, amax
from trtbuild.quantization.thresholds import INT8_STEPS
from trtbuild.sources import absolute

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trtbuild.engine import TensorSpec
    from trtbuild.graph import Graph
    from trtbuild.quantization.ranges import Ranges, TensorStatistics
    from trtbuild.recipe import Recipe
    from trtbuild.store import Store
    from trtbuild.verification.results import Parity


@dataclass(frozen=True, kw_only=True)
class Part:
    """What to do a part of."""

    recipe: Recipe
    store: Store
    say: Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported model, and its parity with the framework (None where it was not checked)."""

    graph: Graph
    parity: Parity | None
    findings: tuple[str, ...]


class TensorRow(Value, frozen=True, kw_only=True):
    """The measured range of one tensor, and the threshold of magnitude by each method."""

    tensor: str
    minimum: float
    maximum: float
    thresholds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The ranges of a model's tensors: statistics, and a row for each in the graph's order."""

    sha256: str
    ranges: Ranges
    rows: tuple[TensorRow, ...]


def export(part: Part, out: Path) -> Exported:
    """Export the model to ``out`` and compare it with the framework on real inputs.

    Raises:
        UsageError: ``out`` is the model's own file.
        ExportError: it cannot be exported, or the export computes something else.
        OSError: ``out`` cannot be written.
    """
    original = absolute(part.recipe.source.location, part.recipe.folder)
    if out.exists() and original.exists() and out.samefile(original):
        raise UsageError(f"{out} is the model itself: give another path with --out")
    with working(part.recipe, part.store, part.say) as context:
        source = export_source(context, open_data(context))
        graph = save_model(load_model(source.graph.path), out)
    findings = tuple(finding.text for finding in context.findings)
    return Exported(graph=read_graph(graph.path), parity=source.parity, findings=findings)


def calibrate(part: Part) -> Calibrated:
    """Measure the ranges that the installed backends need to quantize the model.

    Raises:
        UsageError: the recipe names no data.
        DataError: the data does not fit the model, or activations are not finite.
    """
    with working(part.recipe, part.store, part.say) as context:
        data = open_data(context)
        if data is None:
            raise UsageError(
                "calibrate needs data: give --calibration PROVIDER.py|FILE.npz|FOLDER"
            )
        source = export_source(context, data)
        graph = optimized(context, source.graph)
        sparse, _ = sparsified(context, graph, data)
        ranges, sha256 = measured(context, sparse, data)
    return Calibrated(
        sha256=sha256,
        ranges=ranges,
        rows=tuple(_row(name, found) for name, found in ranges.items()),
    )


def _row(name: str, found: TensorStatistics) -> TensorRow:
    return TensorRow(
        tensor=name,
        minimum=found.minimum,
        maximum=found.maximum,
        thresholds={method: amax(found, method, INT8_STEPS) for method in METHODS},
    )


def describe(spec: TensorSpec) -> str:
    """Return ``images float32 [batch, 1, 28, 28]``."""
    return f"{spec.name} {spec.dtype} [{', '.join(str(size) for size in spec.shape)}]"
