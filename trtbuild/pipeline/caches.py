"""TensorRT calibration caches as a command of their own: what one covers, and writing one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtbuild.backends import NAMES, backend
from trtbuild.engine import Value
from trtbuild.errors import DataError, UsageError
from trtbuild.graph.model import infer_shapes, load_model, save_model
from trtbuild.pipeline.context import working
from trtbuild.pipeline.legacy import covered, legacy
from trtbuild.pipeline.quantizing import measured, placements_of
from trtbuild.pipeline.ranges import ranges_of
from trtbuild.pipeline.simplify import optimized
from trtbuild.pipeline.source import export_source, open_data
from trtbuild.quantization.casting import float_tensors
from trtbuild.quantization.coverage import Coverage
from trtbuild.quantization.methods import METHODS, amax
from trtbuild.quantization.thresholds import INT8_STEPS
from trtbuild.quantization.trt_cache import ALGORITHMS, TrtCache, scale_of

if TYPE_CHECKING:
    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.partial import Part

_ALGORITHMS = {"minmax": "MinMaxCalibration"}
"""What the header names for our method, EntropyCalibration2 for every other one: a header says
only which class of calibrators reads the file, and that class is the one that trtexec has."""


class Covered(Value, frozen=True, kw_only=True):
    """What a cache is worth to the graph of one backend's scheme."""

    scheme: str
    backends: tuple[str, ...]
    coverage: Coverage


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A cache that was read, and its worth by scheme."""

    cache: TrtCache
    schemes: tuple[Covered, ...]


def fit(part: Part) -> Fitted:
    """Return which tensors of the model the recipe's calibration cache has scales for.

    Raises:
        DataError: the file is no calibration cache.
        UsageError: the recipe names none.
    """
    with working(part.recipe, part.store, part.say) as context:
        source = export_source(context, open_data(context))
        found = legacy(context, source.graph)
        if found is None:
            raise UsageError("no calibration cache is named: give --from-trt-cache FILE")
        graph = optimized(context, source.graph)
        users: dict[str, list[str]] = {}
        for name in NAMES:
            users.setdefault(backend(name).SCHEME.name, []).append(name)
        schemes = {each.name: each for each in (backend(name).SCHEME for name in NAMES)}
        placements = placements_of(context, graph, tuple(schemes.values()))
        return Fitted(
            cache=found.cache,
            schemes=tuple(
                Covered(
                    scheme=name,
                    backends=tuple(users[name]),
                    coverage=covered(context, found, graph, scheme, placements[name]),
                )
                for name, scheme in schemes.items()
            ),
        )


def refuse_incomplete(fitted: Fitted) -> None:
    """Refuse a cache that is too little for every backend.

    Raises:
        DataError: no scheme has a scale for each of its tensors.
    """
    if all(each.coverage.missing for each in fitted.schemes):
        lacking = "; ".join(
            f"{each.scheme} {len(each.coverage.missing)}" for each in fitted.schemes
        )
        raise DataError(
            f"the calibration cache is incomplete for every backend (tensors without a scale: "
            f"{lacking}): add --calibration, whose data fills them, or give the ONNX file that "
            f"TensorRT parsed"
        )


def measure(part: Part, method: str, version: str) -> TrtCache:
    """Return a cache of the scales that ``method`` gives for all tensors of the model.

    Raises:
        UsageError: there is no such method, or the recipe names no data.
        DataError: the data does not fit the model.
    """
    if method not in METHODS:
        raise UsageError(
            f"--method {method}: a calibration cache holds the scales of one method: expected "
            f"one of {', '.join(METHODS)}"
        )
    with working(part.recipe, part.store, part.say) as context:
        data = open_data(context)
        if data is None:
            raise UsageError(
                "--to-trt-cache needs data: give --calibration PROVIDER.py|FILE.npz|FOLDER"
            )
        exported = export_source(context, data).graph
        ranges, _ = measured(context, optimized(context, exported), data)
        source = _typed(context, exported)
        names = float_tensors(source)
        # Tensors that our engines need have the very ranges that those are built with, so
        # that the cache gives the same engine; the rest, TensorRT's own business, are
        # measured in the graph that it parses.
        rest = tuple(name for name in names if name not in ranges)
        others, _ = ranges_of(context, source, data, rest, "leave out") if rest else ({}, "")
    found = {**others, **ranges}
    scales = {
        name: scale_of(amax(found[name], method, INT8_STEPS)) for name in names if name in found
    }
    return TrtCache(
        version=version, algorithm=_ALGORITHMS.get(method, ALGORITHMS[0]), scales=scales
    )


def _typed(context: Context, graph: Graph) -> Graph:
    """Return the source with the types that inference tells, and its constants no inputs."""
    model = load_model(graph.path)
    infer_shapes(model)
    kept = [value for value in model.graph.inputs if not value.is_initializer()]
    model.graph.inputs[:] = kept
    out = context.work / "typed"
    out.mkdir(exist_ok=True)
    return save_model(model, out / "model.onnx")
