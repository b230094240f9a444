"""What is inside an engine, a plan file or an ONNX file, learned without running it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trtbuild.backends.trt_plan import HEADER_BYTES, Header, is_plan, read_header
from trtbuild.engine import Manifest, TensorSpec, Value
from trtbuild.errors import SourceError, StoreError, UsageError
from trtbuild.store import Store, find_engine
from trtbuild.store.location import root_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

_FRONT_LIMIT_BYTES = 1 << 20
"""As much of a file is looked at for an engine's header."""

_ONNX_DOMAINS = ("", "ai.onnx")


class StoredEngine(Value, frozen=True):
    """An engine of the store: where its bytes are, verified just now, and its manifest.

    ``also`` are the keys of other engines that came out as the same bytes.
    """

    path: str
    manifest: Manifest
    also: tuple[str, ...] = ()


class PlanFile(Value, frozen=True):
    """An engine of TensorRT or TensorRT-RTX of which the store knows nothing.

    ``bytes`` is the file's size. ``front`` are the names of what stands before the engine,
    which begins at ``offset``: Ultralytics writes its own metadata there.
    """

    path: str
    bytes: int
    header: Header
    offset: int = 0
    front: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the file is as long as its header says."""
        return self.bytes == self.offset + self.header.bytes

    @property
    def damaged(self) -> bool:
        """Whether it is surely not whole; so old a header that has no version may not tell."""
        may_tell = self.header.product != "tensorrt" or bool(self.header.version)
        return may_tell and not self.whole

    @property
    def state(self) -> str:
        """Whether it is whole, in words."""
        if self.whole:
            return "whole: as long as its header says"
        said, has = self.header.bytes, self.bytes - self.offset
        told = f"its header says {said} bytes, it has {has}"
        if not self.damaged:
            return f"not known: {told}, but so old a header may not tell its length"
        return f"DAMAGED: {told}. Copy or build it again"


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
        return _stored(Store.open_existing(store), text)
    if root_of(store).exists():
        try:
            return _stored(Store.open_existing(store), text)
        except UsageError:
            pass  # a file of which the store knows nothing
    return _plan(path) or _onnx(path)


def timed(found: Inspected, store: str, say: Callable[[str], None]) -> StoredEngine:
    """Return an engine of the store with the times of its layers on this machine.

    Raises:
        UsageError: it is a file of which the store knows nothing.
        MissingBackendError: it does not run on this machine.
        TrustError: this machine has another version of its library.
    """
    from trtbuild.pipeline.layer_times import timed_layers

    if not isinstance(found, StoredEngine):
        raise UsageError(
            f"{found.path}: --times runs engines of the store only, since what no manifest "
            f"names was not verified. Build one with 'trtbuild engine' first"
        )
    layers = timed_layers(Store.open(store), found.manifest, say)
    timed_manifest = msgspec.structs.replace(found.manifest, layers=layers)
    return msgspec.structs.replace(found, manifest=timed_manifest)


def _plan(path: Path) -> PlanFile | None:
    """Return an engine file, or None where the file is something else.

    Raises:
        SourceError: it starts as an engine does and ends within the header.
    """
    with path.open("rb") as file:
        start = file.read(_FRONT_LIMIT_BYTES)
    offset, front = _front(start)
    plan = start[offset:]
    header = read_header(plan)
    if header is not None:
        size = path.stat().st_size
        return PlanFile(path=str(path), bytes=size, header=header, offset=offset, front=front)
    if is_plan(plan):
        raise SourceError(
            f"{path}: a damaged engine: it ends after {len(plan)} bytes, within a header of "
            f"{HEADER_BYTES}, or its header is not whole. Copy or build it again"
        )
    return None


def _front(start: bytes) -> tuple[int, tuple[str, ...]]:
    """Return where an engine begins behind a JSON object and its length, and that one's names.

    So Ultralytics writes its files: four bytes of length, little-endian, then the JSON.
    """
    length = int.from_bytes(start[:4], "little")
    if not (length > 0 and is_plan(start[4 + length :])):
        return 0, ()
    try:
        found = msgspec.json.decode(start[4 : 4 + length])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0, ()
    return (4 + length, tuple(map(str, found))) if isinstance(found, dict) else (0, ())


def _stored(store: Store, text: str) -> StoredEngine:
    manifest = find_engine(store, text).read(Manifest)
    try:
        path = store.verified_path(manifest.sha256)
    except StoreError as error:
        recipe = msgspec.json.decode(manifest.recipe or b"{}")
        name, folder = recipe.get("name", "unknown"), recipe.get("folder", "")
        raise StoreError(f"{error}. It was built of {name!r} in {folder}") from error
    also = tuple(
        sorted(
            record.key
            for record in store.records("engine")
            if record.key != manifest.key
            and any(blob.sha256 == manifest.sha256 for blob in record.blobs)
        )
    )
    return StoredEngine(path=str(path), manifest=manifest, also=also)


def _onnx(path: Path) -> OnnxFile:
    from trtbuild.graph.model import load_model, read_graph

    try:
        graph, model = read_graph(path), load_model(path)
    except SourceError as error:
        if path.suffix == ".onnx":
            raise
        raise SourceError(
            f"{path}: no engine of TensorRT or TensorRT-RTX (it does not start with the "
            f"header of one), and read as ONNX: {error}"
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
