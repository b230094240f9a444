"""Whether a stored engine can be given new weights, so that none has to be built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import onnx

from trtbuild.backends import gpu, staging
from trtbuild.canonical import encode
from trtbuild.engine import Manifest
from trtbuild.errors import BuildError
from trtbuild.graph.structure import Structure, structure_of
from trtbuild.pipeline.building import engines
from trtbuild.runtime.made_here import was_made_here
from trtbuild.store import BlobLostError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trtbuild.engine import EngineKey, Setting
    from trtbuild.graph import Graph
    from trtbuild.store import Blob, Record, Store

STRUCTURE = "structure"
"""The blob of an engine's record that holds its :class:`Structure`."""

WEIGHTS = "weights"
"""The blob that holds the network of an engine which was stored without its weights."""

_SHOWN_DIGITS = 12
_MOST_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True)
class Refit:
    """An engine to refit instead of building one, its file, and the weights that differ."""

    donor: Manifest
    path: Path
    changed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to do for a key: refit, or build; ``reason`` says why not, where one could hope."""

    refit: Refit | None = None
    reason: str = ""


def is_refittable(settings: Mapping[str, Setting]) -> bool:
    """Tell whether engines with these settings can be given weights, old or new."""
    return any(settings.get(n) for n in ("refit", "refit_identical", "refit_individual"))


def choose(store: Store, key: EngineKey, structure: Structure) -> Choice:
    """Return the newest engine whose key is ``key`` but for the values of weights.

    Only engines that were built are given weights, not those that were refitted themselves:
    what their first builder knew of the weights is told by one record. And only those that
    were built here: what is refitted here counts as built here, and all but its weights is
    the donor's.
    """
    candidates = [
        record
        for record, manifest in engines(store)
        if _is_alike(manifest, key) and not manifest.refit_of and was_made_here(record)
    ]
    if not candidates:
        return Choice()
    found = sorted(candidates, key=lambda record: record.created, reverse=True)
    reason = _forbidden(dict(key.settings))
    if reason:
        return Choice(reason=_not(found[0], reason))
    fitting = [each for each in found if _structure(store, each).sha256 == structure.sha256]
    if not fitting:
        return Choice(reason=_not(found[0], "the networks differ in more than weights"))
    absence = gpu.why_none()
    if absence:
        return Choice(reason=_not(fitting[0], f"a refit takes a GPU: {absence}"))
    for record in fitting:
        donor = record.read(Manifest)
        try:
            path = store.verified_path(donor.sha256)
        except BlobLostError:
            continue
        changed = _structure(store, record).changed(structure)
        return Choice(refit=Refit(donor=donor, path=path, changed=changed))
    return Choice()


def put_structure(store: Store, structure: Structure) -> Blob:
    """Store what a later refit will ask of the engine."""
    return store.put_bytes(STRUCTURE, encode(structure))


def put_weights(store: Store, graph: Graph, folder: Path) -> Blob:
    """Store the network whose weights an engine without any is given when it is loaded.

    Raises:
        BuildError: it is larger than one ONNX file can be.
    """
    staged = staging.stage(graph, folder / WEIGHTS)
    try:
        model = onnx.load(staged.path)
        data = model.SerializeToString() if model.ByteSize() < _MOST_BYTES else b""
    except ValueError:  # protobuf's own limit
        data = b""
    if not data:
        raise BuildError(
            f"{graph.path}: strip_plan stores the weights in one ONNX file, which cannot be "
            "larger than 2 GiB: leave strip_plan out"
        )
    return store.put_bytes(WEIGHTS, data)


def told(refit: Refit, seconds: float) -> str:
    """Return the finding that an engine was refitted."""
    name = refit.donor.sha256[:_SHOWN_DIGITS]
    count = len(refit.changed)
    return f"refitted from engine {name} in {seconds:.1f} s, not built: {count} weights differ"


def structure_if_refittable(settings: Mapping[str, Setting], graph: Graph) -> Structure | None:
    """Return the structure of an engine's network, None where no engine of it is refittable."""
    return structure_of(graph.path) if is_refittable(settings) else None


def _is_alike(manifest: Manifest, key: EngineKey) -> bool:
    same = msgspec.structs.replace(manifest.preimage, network_sha256=key.network_sha256)
    return same == key and manifest.preimage != key


def _forbidden(settings: Mapping[str, Setting]) -> str:
    if settings.get("refit_identical"):
        return (
            "with refit_identical other weights than its own are undefined (TensorRT, "
            "BuilderFlag): set refit in its place"
        )
    if settings.get("sparse_weights"):
        return "its kernels may rely on which weights are 0: leave sparse_weights out"
    return ""


def _structure(store: Store, record: Record) -> Structure:
    try:
        sha256 = next(blob.sha256 for blob in record.blobs if blob.name == STRUCTURE)
        return msgspec.json.decode(store.read(sha256), type=Structure)
    except (StopIteration, BlobLostError, msgspec.MsgspecError):
        return Structure(sha256="", weights={})


def _not(record: Record, reason: str) -> str:
    name = record.read(Manifest).sha256[:_SHOWN_DIGITS]
    return f"built, not refitted from engine {name}: {reason}"
