"""Scales from a TensorRT calibration cache instead of, or before, calibration data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtbuild.engine import Value
from trtbuild.errors import DataError
from trtbuild.quantization import coverage
from trtbuild.quantization.coverage import Coverage
from trtbuild.quantization.trt_cache import amax_of, read_cache
from trtbuild.sources import absolute
from trtbuild.sources.dependencies import Dependencies, FileRead, file_digest

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.backends.scheme import Scheme
    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.quantization.placement import Placement
    from trtbuild.quantization.thresholds import Thresholds
    from trtbuild.quantization.trt_cache import TrtCache

_NAMED = 5
"""Missing tensors that a message names; ``calibrate --from-trt-cache`` lists all."""


@dataclass(frozen=True, kw_only=True)
class Legacy:
    """A recipe's calibration cache, its file, and the graph whose tensors it names.

    ``dependencies`` has the file as it was when it was read.
    """

    path: Path
    cache: TrtCache
    source: Graph
    dependencies: Dependencies


@dataclass(frozen=True, kw_only=True)
class Given:
    """Intervals that need no measurement; ``incomplete`` is whether other tensors do."""

    header: str
    intervals: Thresholds
    incomplete: bool

    def label(self, method: str) -> str:
        """Return what the report calls scales of the cache, the rest by ``method``."""
        return " + ".join(filter(None, (self.header, method)))


class _CoverageKey(Value, frozen=True, kw_only=True):
    cache_sha256: str
    source_sha256: str
    graph_sha256: str
    tensors: tuple[str, ...]
    version: int


def legacy(context: Context, source: Graph) -> Legacy | None:
    """Return the calibration cache that the recipe names, None without one.

    Raises:
        DataError: the file is no calibration cache.
    """
    name = context.recipe.quantization.trt_cache
    if name is None:
        return None
    path = absolute(name, context.recipe.folder)
    read = FileRead(path=str(path), sha256=file_digest(str(path)))
    return Legacy(
        path=path,
        cache=read_cache(path),
        source=source,
        dependencies=Dependencies(files=(read,)),
    )


def covered(
    context: Context, found: Legacy, graph: Graph, scheme: Scheme, placement: Placement
) -> Coverage:
    """Return what the cache has for the tensors that ``placement`` needs scales of."""
    tensors = placement.observed
    key = _CoverageKey(
        cache_sha256=found.cache.sha256,
        source_sha256=found.source.sha256,
        graph_sha256=graph.sha256,
        tensors=tensors,
        version=coverage.VERSION,
    )
    return context.remembered(
        f"read calibration cache for {scheme.name}",
        "coverage",
        key,
        Coverage,
        lambda: coverage.cover(found.cache, found.source, graph, tensors),
    )


def given_by(
    context: Context, found: Legacy | None, graph: Graph, scheme: Scheme, placement: Placement
) -> Given:
    """Return the intervals that the recipe's cache gives, none without one.

    They are symmetric, whatever the scheme: a cache knows magnitudes only.

    Raises:
        DataError: tensors have no scale, and there is no calibration data for them.
    """
    if found is None:
        return Given(header="", intervals={}, incomplete=True)
    fitted = covered(context, found, graph, scheme, placement)
    if context.recipe.quantization.provider is None:
        _refuse_missing(found.path, fitted, scheme)
    for text in _findings(found.path, fitted):
        context.find("calibrate", text)
    return Given(
        header=found.cache.header,
        intervals={
            each.tensor: (-amax_of(each.scale), amax_of(each.scale)) for each in fitted.matches
        },
        incomplete=bool(fitted.missing),
    )


def _refuse_missing(path: Path, fitted: Coverage, scheme: Scheme) -> None:
    """Refuse tensors without a scale, by name.

    Raises:
        DataError: there are some.
    """
    if not fitted.missing:
        return
    number, total = len(fitted.missing), len(fitted.missing) + len(fitted.matches)
    named = ", ".join(
        repr(each.name) + (f" (entries like it: {', '.join(each.close)})" if each.close else "")
        for each in fitted.missing[:_NAMED]
    )
    more = f" and {number - _NAMED} more" if number > _NAMED else ""
    raise DataError(
        f"{path}: the calibration cache has no scale for {number} of {total} tensors that "
        f"{scheme.name} quantizes: {named}{more}. Give the ONNX file that TensorRT parsed when "
        f"the cache was written, or data for the rest with --calibration; "
        f"'calibrate --from-trt-cache' lists every tensor"
    )


def _findings(path: Path, fitted: Coverage) -> tuple[str, ...]:
    """Return what a reader of the report should know."""
    found = []
    if fitted.missing:
        names = _listed([each.name for each in fitted.missing])
        found.append(
            f"{path.name}: {len(fitted.missing)} tensors are not in the calibration cache and "
            f"have ranges from the data: {names}"
        )
    if fitted.unknown:
        names = _listed([each.name for each in fitted.unknown])
        found.append(
            f"{path.name}: {len(fitted.unknown)} entries of the calibration cache fit no "
            f"tensor of the model: {names}"
        )
    zeros = [each.tensor for each in fitted.matches if not each.scale]
    if zeros:
        found.append(
            f"{path.name}: scale 0, so calibration saw nothing but zeros: {_listed(zeros)}"
        )
    return tuple(found)


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED])) + ", ..." * (len(names) > _NAMED)
