"""The first stages: digest the data, export the model, compare it with the framework."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trtbuild.backends.distributions import version
from trtbuild.backends.ort_session import open_graph
from trtbuild.batches import rechunk
from trtbuild.canonical import digest
from trtbuild.engine import ShapeRange, TensorSpec, Value
from trtbuild.errors import DataError
from trtbuild.graph.model import files_of, load_model, read_graph, save_model
from trtbuild.pipeline import memo
from trtbuild.sources import ExportRequest, absolute, source
from trtbuild.sources.checks import DIGEST_TAG, add_batch, checked, data_digest
from trtbuild.sources.dependencies import ABSENT, Dependencies
from trtbuild.sources.provider import load_provider
from trtbuild.sources.tracing import traced
from trtbuild.verification.parity import check_parity
from trtbuild.verification.results import Parity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from trtbuild.backends import Session
    from trtbuild.batches import Array, Batch, Provider
    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context

_EXPORTERS = {"onnx": ("onnx",), "torch": ("torch", "onnxscript", "onnx")}
_EXPORTERS["pt2"] = _EXPORTERS["torch"]

VERSION = 1
"""Part of the keys of data and exports; raised when either starts to be something else."""


class DataInfo(Value, frozen=True, kw_only=True):
    """The content of a provider: digests of its batches in order, and of its metric.

    ``calibration_samples`` are counted as calibration counts them: batches without a common
    first axis as one.
    ``metric_sha256`` is over the code and all that it reads, empty without a metric.
    ``example`` tells names, types and shapes of the first calibration batch.
    """

    calibration_sha256: str
    calibration_samples: int
    evaluation_sha256: str
    evaluation_batches: int
    metric_sha256: str
    example: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Data:
    """A provider with what is known of its content and what it was seen to read."""

    provider: Provider
    info: DataInfo
    dependencies: Dependencies


class _DataQuestion(Value, frozen=True, kw_only=True):
    folder: str
    provider: str
    evaluation: str | None
    version: int = VERSION + 1  # DataInfo has the number of samples


class _DataAnswer(Value, frozen=True, kw_only=True):
    info: DataInfo
    dependencies: Dependencies


class _SourceQuestion(Value, frozen=True, kw_only=True):
    folder: str
    framework: str
    location: str
    exporters: tuple[tuple[str, str], ...]
    profiles: tuple[ShapeRange, ...]
    example: tuple[TensorSpec, ...]
    version: int = VERSION


class _SourceKey(Value, frozen=True, kw_only=True):
    """What decides the bytes of the exported graph, wherever it and the recipe lie.

    Each file counts under its path from the source's: two files that change places are another
    model. An ONNX file is taken as it is, whatever its name, the profiles and the data.
    """

    framework: str
    factory: str
    content: tuple[tuple[str, str], ...]
    packages: tuple[tuple[str, str], ...]
    profiles: tuple[ShapeRange, ...]
    example: tuple[TensorSpec, ...]
    version: int = VERSION


class _SourceAnswer(Value, frozen=True, kw_only=True):
    key: _SourceKey
    dependencies: Dependencies


class SourceDetail(Value, frozen=True, kw_only=True):
    """What the export stage found out; no parity without data, or without an export."""

    parity: Parity | None


@dataclass(frozen=True, kw_only=True)
class ExportedSource:
    """The model as a graph, and how it got there."""

    graph: Graph
    parity: Parity | None
    key: str
    dependencies: Dependencies


def open_data(context: Context) -> Data | None:
    """Return the data of the recipe, hashed once for as long as it does not change.

    With a calibration cache, data for the evaluation alone will do.

    Raises:
        DataError: the provider cannot be loaded or raises.
    """
    table = context.recipe.quantization
    spec = table.provider or (table.evaluation if table.trt_cache is not None else None)
    if spec is None:
        return None
    folder = context.recipe.folder
    question = _DataQuestion(folder=str(folder), provider=spec, evaluation=table.evaluation)
    provider = load_provider(spec, folder, table.evaluation)
    known = memo.recall(context.store, question)
    if known is not None:
        answer = msgspec.json.decode(known, type=_DataAnswer)
        return Data(provider=provider, info=answer.info, dependencies=answer.dependencies)
    context.say("read data")
    (provider, info), dependencies = traced(
        lambda: _digested(load_provider(spec, folder, table.evaluation))
    )
    if provider.metric is not None:
        info = msgspec.structs.replace(
            info, metric_sha256=_code_digest(dependencies, _home(spec, folder))
        )
    answer = _DataAnswer(info=info, dependencies=dependencies)
    memo.remember(context.store, question, dependencies, answer)
    return Data(provider=provider, info=info, dependencies=dependencies)


def export_source(context: Context, data: Data | None) -> ExportedSource:
    """Return the recipe's model as a graph, exported and compared once for its content.

    Raises:
        SourceError: the model cannot be read.
        ExportError: it cannot be exported, or the export computes something else.
        DataError: the data does not fit the model.
    """
    recipe = context.recipe
    framework, location = recipe.source.framework, recipe.source.location
    question = _SourceQuestion(
        folder=str(recipe.folder),
        framework=framework,
        location=location,
        exporters=tuple((name, version(name)) for name in _EXPORTERS[framework]),
        profiles=recipe.build.shape_ranges(),
        example=data.info.example if data is not None else (),
    )
    exported: list[Graph] = []

    def export() -> Graph:
        out = context.work / "exported" / "model.onnx"
        out.parent.mkdir(exist_ok=True)
        example = next(iter(data.provider.calibration_batches()), None) if data else None
        request = ExportRequest(
            location=location,
            folder=recipe.folder,
            example=example,
            profiles=question.profiles,
            out=out,
        )
        return source(framework).export(request)

    known = memo.recall(context.store, question)
    if known is None:
        context.say(f"export from {framework}")
        graph, dependencies = traced(export)
        exported.append(graph)
        key = _source_key(question, dependencies, recipe.folder)
        answer = _SourceAnswer(key=key, dependencies=dependencies)
        memo.remember(context.store, question, dependencies, answer)
    else:
        answer = msgspec.json.decode(known, type=_SourceAnswer)

    def make(out: Path) -> tuple[Graph, SourceDetail]:
        graph = exported[0] if exported else export()
        parity = _parity(context, graph, data)
        return _copied(graph, out), SourceDetail(parity=parity)

    graph, detail = context.remembered_graph("export", "source", answer.key, SourceDetail, make)
    if detail.parity is None and framework != "onnx":
        context.find("export", "parity with the framework was not checked: there is no data")
    return ExportedSource(
        graph=graph,
        parity=detail.parity,
        key=digest("source/v1", answer.key),
        dependencies=answer.dependencies,
    )


class _Reference:
    """The framework's session, with the outputs that its export told."""

    def __init__(self, session: Session, graph: Graph) -> None:
        self._session = session
        self._graph = graph

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that the framework takes."""
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs of the exported graph, which are the framework's."""
        return self._graph.outputs

    def run(self, inputs: Batch) -> dict[str, Array]:
        """Return the framework's outputs."""
        return self._session.run(inputs)


def reference_session(context: Context, graph: Graph) -> Session:
    """Return the session in which the original framework computes; ``graph`` is its export."""
    recipe = context.recipe
    module = source(recipe.source.framework)
    return _Reference(module.reference(recipe.source.location, recipe.folder), graph)


def calibration(data: Data, graph: Graph) -> Iterator[Batch]:
    """Yield the calibration batches, each checked against the graph's inputs."""
    what = "calibration_batches"
    batches = _same(data, data.provider.calibration_batches, data.info.calibration_sha256, what)
    return _checked(data, graph, batches, what)


def evaluation(data: Data, graph: Graph) -> Iterator[Batch]:
    """Yield the evaluation batches, each checked against the graph's inputs."""
    what = "evaluation_batches"
    batches = _same(data, data.provider.evaluation_batches, data.info.evaluation_sha256, what)
    return _checked(data, graph, batches, what)


def _same(
    data: Data, batches: Callable[[], Iterable[Batch]], sha256: str, what: str
) -> Iterator[Batch]:
    """Yield the batches, and refuse at their end that they were not those of the keys."""
    total = hashlib.sha256(DIGEST_TAG)
    for batch in batches():
        add_batch(total, batch)
        yield batch
    if total.hexdigest() != sha256:
        raise DataError(
            f"{data.provider.name}: {what} yields other batches than when it was first read. "
            f"It must yield the same at every call: seed its random numbers, sort the names of "
            f"files, and name in FILES what it reads by other means than Python's"
        )


def _checked(data: Data, graph: Graph, batches: Iterable[Batch], what: str) -> Iterator[Batch]:
    """Check batches, cut to the model's size first where it has one and no metric forbids it.

    A metric may depend on what stands in one batch (a search, for example), so batches of a
    provider that has one are taken as they are. A rest that does not fill a batch is left out.

    Raises:
        DataError: all samples together do not fill one batch.
    """
    fixed = {spec.shape[0] for spec in graph.inputs if spec.shape}
    size = next(iter(fixed), None)
    if data.provider.metric is None and len(fixed) == 1 and isinstance(size, int):
        names = [spec.name for spec in graph.inputs]
        batches = rechunk(_with_inputs(data.provider.name, batches, names), names, size)
        batches = _full(batches, size, f"{data.provider.name}: {what}")
    return checked(batches, graph.inputs, data.provider.name, what)


def _full(batches: Iterable[Batch], size: int, where: str) -> Iterator[Batch]:
    """Yield the batches but for the last of each shape where it is shorter than ``size``."""
    rest, found = 0, False
    for batch in batches:
        lengths = {array.shape[:1] for array in batch.values()}
        ((length,),) = lengths if len(lengths) == 1 and lengths != {()} else {(size,)}
        if length == size:
            found = True
            yield batch
        else:
            rest += length
    if rest and not found:
        raise DataError(
            f"{where}: the model takes batches of {size}, but there are {rest} samples. Give "
            f"at least {size}, or export the model with an open batch"
        )


def _with_inputs(provider: str, batches: Iterable[Batch], names: list[str]) -> Iterator[Batch]:
    """Yield the batches, each known to have every input."""
    for batch in batches:
        if any(name not in batch for name in names):
            raise DataError(
                f"{provider}: a batch has the arrays {', '.join(map(repr, batch))}, but the "
                f"model's inputs are {', '.join(map(repr, names))}. Name the arrays like these"
            )
        yield batch


def _digested(provider: Provider) -> tuple[Provider, DataInfo]:
    first = next(iter(provider.calibration_batches()), {})
    samples = count = 0

    def calibrating() -> Iterator[Batch]:
        nonlocal samples
        for batch in provider.calibration_batches():
            samples += max((len(array) for array in batch.values() if array.ndim), default=1)
            yield batch

    def counted() -> Iterator[Batch]:
        nonlocal count
        for batch in provider.evaluation_batches():
            count += 1
            yield batch

    info = DataInfo(
        calibration_sha256=data_digest(calibrating()),
        calibration_samples=0,
        evaluation_sha256=data_digest(counted()),
        evaluation_batches=0,
        metric_sha256="",
        example=tuple(
            TensorSpec(name=name, dtype=array.dtype.name, shape=tuple(array.shape))
            for name, array in first.items()
        ),
    )
    return provider, msgspec.structs.replace(
        info, calibration_samples=samples, evaluation_batches=count
    )


def _home(location: str, folder: Path) -> Path:
    """Return the folder of the file that a location names, the recipe's where it names none.

    A model is one model from whichever folder a command names it.
    """
    path = absolute(location.rpartition(":")[0] or location, folder)
    return path.parent if path.is_file() else folder


def _content(dependencies: Dependencies, folder: Path) -> tuple[tuple[str, str], ...]:
    """Return path from ``folder`` and digest of each file that was read and was there."""
    return tuple(
        sorted(
            (os.path.relpath(file.path, folder), file.sha256)
            for file in dependencies.files
            if file.sha256 != ABSENT
        )
    )


def _code_digest(dependencies: Dependencies, folder: Path) -> str:
    packages = sorted((item.name, item.version) for item in dependencies.distributions)
    return digest("content/v1", [_content(dependencies, folder), packages])


def _source_key(
    question: _SourceQuestion, dependencies: Dependencies, folder: Path
) -> _SourceKey:
    packages = {item.name: item.version for item in dependencies.distributions}
    packages |= dict(question.exporters)
    is_file = question.framework == "onnx"
    own = Path(question.location).name if is_file else ""
    content = _content(dependencies, _home(question.location, folder))
    return _SourceKey(
        framework=question.framework,
        factory=question.location.rpartition(":")[2] if question.framework == "torch" else "",
        content=tuple(("" if name == own else name, sha256) for name, sha256 in content),
        packages=tuple(sorted(packages.items())),
        profiles=() if is_file else question.profiles,
        example=() if is_file else question.example,
    )


def _parity(context: Context, graph: Graph, data: Data | None) -> Parity | None:
    if data is None or context.recipe.source.framework == "onnx":
        return None
    context.say("compare the export with the framework")
    batch = next(calibration(data, graph))
    exported = open_graph(graph.path, fused=True)
    return check_parity(reference_session(context, graph), exported, batch)


def _copied(graph: Graph, out: Path) -> Graph:
    """Write ``graph`` to ``out``, external data under our own name beside it."""
    if len(files_of(graph.path)) > 1:
        return save_model(load_model(graph.path), out)
    shutil.copyfile(graph.path, out)
    return read_graph(out)
