"""How long each layer of an engine takes on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from trtbuild.backends import gpu, gpu_lock, runtime
from trtbuild.errors import MissingBackendError
from trtbuild.runtime.admission import allow_measuring
from trtbuild.runtime.machine import preflight

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.batches import Array
    from trtbuild.engine import Layers, Manifest, TensorSpec
    from trtbuild.store import Store

_CALLS = 20


def timed_layers(store: Store, manifest: Manifest, say: Callable[[str], None]) -> Layers:
    """Return the engine's layers with ``milliseconds``: the median of several calls.

    It runs at the shapes that its first profile is tuned for, on normal noise; integers are 0,
    which every index may be. The profiler takes time itself: compare layers with each other.

    Raises:
        MissingBackendError: the engine does not run on this machine; the message says where.
        TrustError: the installed library is not the one that built it.
        StoreError: the engine's bytes are lost or damaged.
    """
    target = manifest.preimage.target
    reason = runtime(target.backend).cannot_run(target)
    if reason:
        raise MissingBackendError(
            f"--times: the engine is for {target}, and layers are timed where it runs. {reason}"
        )
    preflight(manifest)
    allow_measuring(store, manifest)
    inputs = {spec.name: _values(spec, manifest) for spec in manifest.inputs}
    if target.backend == "onnxruntime":
        from trtbuild.backends.ort_profile import node_ms  # noqa: PLC0415  imports the library

        with store.scratch() as folder:
            times = node_ms(store.verified_path(manifest.sha256), inputs, _CALLS, folder)
    else:
        from trtbuild.backends.trt_times import engine_layer_ms  # noqa: PLC0415  needs a driver

        index = gpu.index_for(target)
        engine = store.read(manifest.sha256)
        with gpu_lock.all_of(gpu_lock.measured((target,)), say):
            times = engine_layer_ms(engine, index, target.backend, inputs, _CALLS)
    return msgspec.structs.replace(
        manifest.layers,
        layers=tuple(
            msgspec.structs.replace(each, milliseconds=times.get(each.engine_name))
            for each in manifest.layers.layers
        ),
    )


def _values(spec: TensorSpec, manifest: Manifest) -> Array:
    """Return an array for an input, of ``opt`` shape; open axes without a profile are 1."""
    profile = next(iter(manifest.preimage.profiles), ())
    tuned = next((item.opt for item in profile if item.input == spec.name), None)
    shape = tuned or tuple(size if isinstance(size, int) else 1 for size in spec.shape)
    if spec.dtype.startswith("float"):
        noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        return np.asarray(noise, np.dtype(spec.dtype))
    if spec.dtype == "bfloat16":
        return np.zeros(shape, np.uint16)
    return np.zeros(shape, np.dtype(spec.dtype))
