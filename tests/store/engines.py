"""Engine records for tests: real manifests around small bytes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from trtbuild.engine import (
    EngineKey,
    Fingerprint,
    Layer,
    Layers,
    Manifest,
    ShapeRange,
    Target,
    TensorSpec,
)
from trtbuild.store import make_record, put_plan

if TYPE_CHECKING:
    from trtbuild.store import Record, Store


def engine_key(arch: str, level: int, largest_batch: int = 32) -> EngineKey:
    return EngineKey(
        network_sha256=hashlib.sha256(b"network").hexdigest(),
        profiles=((ShapeRange(input="x", min=(1, 3), opt=(8, 3), max=(largest_batch, 3)),),),
        settings=(("optimization_level", level), ("tf32", False)),
        target=Target(backend="tensorrt-rtx", arch=arch, os="linux-x86_64"),
        fingerprint=Fingerprint(backend="tensorrt-rtx", version="1.7.1.116", build="b" * 64),
    )


def put_engine(store: Store, key: EngineKey, data: bytes) -> Record:
    """Store the engine ``data`` with its manifest and its plan record."""
    blob = store.put_bytes("engine", data)
    convolution = Layer(
        name="conv", kind="correlation", precision="int8", compute=True, nodes=("Conv", "Relu")
    )
    manifest = Manifest(
        key=key.digest,
        preimage=key,
        sha256=blob.sha256,
        bytes=blob.bytes,
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 3)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 10)),),
        layers=Layers(layers=(convolution,)),
        precision_requested="int8",
        int8_mac_share=1.0,
        fused_layers=1,
        warnings=(),
        build_seconds=1.5,
        peak_rss_bytes=1 << 20,
        created="2026-01-31T12:00:00Z",
        trtbuild_version="0.1.0",
        recipe="{}",
    )
    record = store.put(make_record("engine", key.digest, key, manifest, (blob,)), Manifest)
    put_plan(store, manifest)
    return record
