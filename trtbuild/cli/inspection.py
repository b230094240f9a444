"""What is inside an engine, a plan file or an ONNX file, learned without running it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.backends.trt_plan import HEADER_BYTES, Header, read_header
from trtbuild.engine import Manifest, TensorSpec, Value
from trtbuild.errors import SourceError, UsageError
from trtbuild.store import Store, find_engine
from trtbuild.store.location import root_of

if TYPE_CHECKING:
    import onnx_ir as ir

_ONNX_DOMAINS = ("", "ai.onnx")


class StoredEngine(Value, frozen=True):
    """An engine of the store: where its bytes are, verified just now, and its manifest."""

    path: str
    manifest: Manifest


class PlanFile(Value, frozen=True):
    """A TensorRT-RTX engine of which the store knows nothing; ``bytes`` is the file's size."""

    path: str
    bytes: int
    header: Header

    @property
    def whole(self) -> bool:
        """Whether the file is as long as its header says."""
        return self.bytes == self.header.bytes


class OnnxFile(Value, frozen=True):
    """An ONNX file, an engine of ONNX Runtime included.

    ``operators`` counts nodes, those of subgraphs and functions too, the most frequent first;
    the name of one that is not ONNX's own has its domain in front. ``parameters`` counts the
    elements of all constants that are initializers.
    """

    path: str
    sha256: str
    opsets: dict[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, int]
    parameters: int
    weights_bytes: int


Inspected = StoredEngine | PlanFile | OnnxFile


def examine(text: str, store: str) -> Inspected:
    """Return what ``text`` names: an engine of the store, or any plan or ONNX file.

    A file that is an engine of the store is that engine, wherever it lies.

    Raises:
        UsageError: it names nothing, or more than one engine.
        SourceError: the file is neither a plan nor ONNX.
        StoreError: the engine's record or bytes are lost or damaged.
    """
    path = Path(text)
    if not path.is_file():
        return _stored(Store.open(store), text)
    if root_of(store).exists():
        try:
            return _stored(Store.open(store), text)
        except UsageError:
            pass  # a file of which the store knows nothing
    with path.open("rb") as file:
        header = read_header(file.read(HEADER_BYTES))
    if header is not None:
        return PlanFile(path=text, bytes=path.stat().st_size, header=header)
    return _onnx(path)


def _stored(store: Store, text: str) -> StoredEngine:
    manifest = find_engine(store, text).read(Manifest)
    return StoredEngine(path=str(store.verified_path(manifest.sha256)), manifest=manifest)


def _onnx(path: Path) -> OnnxFile:
    from trtbuild.graph.model import load_model, read_graph

    try:
        graph, model = read_graph(path), load_model(path)
    except SourceError as error:
        if path.suffix == ".onnx":
            raise
        raise SourceError(
            f"{path}: no TensorRT-RTX engine (it does not start with the header of one), and "
            f"read as ONNX: {error}"
        ) from error
    weights = [
        value.const_value
        for each in model.graphs()
        for value in each.initializers.values()
        if value.const_value is not None
    ]
    return OnnxFile(
        path=str(path),
        sha256=graph.sha256,
        opsets={domain or "ai.onnx": v for domain, v in sorted(model.opset_imports.items())},
        inputs=graph.inputs,
        outputs=graph.outputs,
        operators=_operators(model),
        parameters=sum(tensor.size for tensor in weights),
        weights_bytes=sum(tensor.nbytes for tensor in weights),
    )


def _operators(model: ir.Model) -> dict[str, int]:
    bodies = (*model.graphs(), *model.functions.values())
    counts = Counter(
        node.op_type if node.domain in _ONNX_DOMAINS else f"{node.domain}.{node.op_type}"
        for body in bodies
        for node in body
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
