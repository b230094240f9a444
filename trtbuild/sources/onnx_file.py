"""ONNX files as sources: checked, taken as they are, and run as they are for the reference."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx.shape_inference
import onnx_ir as ir

from trtbuild.backends.ort_session import open_graph
from trtbuild.errors import SourceError
from trtbuild.graph.content import external_locations
from trtbuild.graph.model import load_structure, read_graph
from trtbuild.graph.outline import read_outline
from trtbuild.sources import absolute
from trtbuild.sources.shapes import check_dims
from trtbuild.sources.snapshot import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trtbuild.backends import Session
    from trtbuild.graph import Graph
    from trtbuild.sources import ExportRequest

_REASON_CHARACTERS = 300
"""The checker quotes whole nodes; the beginning says what is wrong."""

_FREE_INITIALIZERS = 4
"""The IR version from which initializers need not be listed as inputs (onnx, docs/IR.md)."""


def export(request: ExportRequest) -> Graph:
    """Return the file itself as a graph, once it is checked.

    What every runtime loads though the standard wants more of it is rewritten, to
    ``request.out``: old files whose initializers are not all listed as inputs, and outputs
    without a shape.

    Raises:
        SourceError: there is no such file, or it is no sound ONNX model.
        RecipeError: a profile is for an unknown input, or has another rank.
        ExportError: a profile asks for a size that the file does not allow.
    """
    original = absolute(request.location, request.folder)
    path = plain(original, request.out.parent)
    with _named(original, path):
        graph = checked_graph(path)
    check_dims(graph.inputs, request.profiles)
    modern = _modern(path)
    if modern is None:
        return graph
    request.out.write_bytes(modern.SerializeToString())
    return read_graph(request.out)


def reference(location: str, folder: Path) -> Session:
    """Return a session of the untouched file, whose Q/DQ pairs are computed as written."""
    original = absolute(location, folder)
    with tempfile.TemporaryDirectory() as name:  # a session keeps what it read of it
        path = plain(original, Path(name))
        with _named(original, path):
            return open_graph(checked_graph(path).path, fused=False)


@contextlib.contextmanager
def _named(original: Path, copy: Path) -> Iterator[None]:
    """Let errors name the user's file and not our copy of it."""
    try:
        yield
    except SourceError as error:
        if copy == original:
            raise
        raise SourceError(str(error).replace(str(copy), str(original))) from error


def checked_graph(path: Path) -> Graph:
    """Return the graph in ``path`` after onnx's full check, shape inference included.

    Raises:
        SourceError: there is no such file, it is empty, cut short or no ONNX, breaks the
            standard, or its external data is missing or outside its folder.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise SourceError(f"{path}: {what}; expected an ONNX file")
    if path.stat().st_size == 0:
        raise SourceError(f"{path}: the file is empty; export or copy the model again")
    graph = read_graph(path)
    _check_input_sizes(graph)
    try:
        modern = _modern(path)
        onnx.checker.check_model(str(path) if modern is None else modern, full_check=True)
        model = load_structure(path)
    except SourceError:
        raise
    except Exception as error:  # checker, shape inference and onnx-ir raise their own classes
        reason = " ".join(str(error).split())[:_REASON_CHARACTERS]
        raise SourceError(
            f"{path}: not a sound ONNX model: {reason}. Export the model again"
        ) from error
    _check_external_sizes(model, path)
    return graph


def _check_input_sizes(graph: Graph) -> None:
    for spec in graph.inputs:
        if any(isinstance(size, int) and size < 1 for size in spec.shape):
            raise SourceError(
                f"{graph.path}: input {spec.name!r} has the shape {list(spec.shape)}; expected "
                f"sizes of 1 and more. Export the model again, an open axis with a name"
            )


def _modern(path: Path) -> onnx.ModelProto | None:
    """Return the model with what today's standard wants of it, None if it has that.

    Models whose weights lie in other files are left as they are: the checker needs those.
    """
    model = read_outline(path).proto
    constants = {tensor.name for tensor in model.graph.initializer}
    listed = {value.name for value in model.graph.input}
    is_old = model.ir_version < _FREE_INITIALIZERS and not constants <= listed
    lacks_shapes = any(
        not value.type.tensor_type.HasField("shape") for value in model.graph.output
    )
    if not (is_old or lacks_shapes) or external_locations(model):
        return None
    model = onnx.load(path, load_external_data=False)
    if is_old:
        inputs = [value for value in model.graph.input if value.name not in constants]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = _FREE_INITIALIZERS
    if lacks_shapes:
        inferred = onnx.shape_inference.infer_shapes(model)
        del model.graph.output[:]
        model.graph.output.extend(inferred.graph.output)
    return model


def _check_external_sizes(model: ir.Model, path: Path) -> None:
    """Refuse external data that is shorter than its tensor; onnx's checker looks at neither."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            available = Path(tensor.path).stat().st_size - (tensor.offset or 0)
            given = min(available, available if tensor.length is None else tensor.length)
            if given < tensor.nbytes:
                raise SourceError(
                    f"{path}: tensor {tensor.name!r} needs {tensor.nbytes} bytes, but its "
                    f"external data {str(tensor.location)!r} has {max(given, 0)} for it. Copy "
                    f"that file again, whole"
                )
