"""The stage that measures what each node takes in floating point and in 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from trtbuild.backends.ort_profile import node_ms
from trtbuild.engine import Value
from trtbuild.pipeline.engines import build_engine, profile_of
from trtbuild.pipeline.recall import machine
from trtbuild.pipeline.verification import latency_inputs
from trtbuild.runtime.admission import admit_measuring

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.batches import Array
    from trtbuild.engine import Manifest
    from trtbuild.pipeline.sensitivity import Subject
    from trtbuild.pipeline.targets import Planned

VERSION = 1
"""Part of the key of node times; raised when they start to mean something else."""

_CALLS = 10
_ROUNDS = 3


class _TimesKey(Value, frozen=True, kw_only=True):
    float_sha256: str
    quantized_sha256: str
    inputs_sha256: str
    machine: str
    version: int


class NodeTimes(Value, frozen=True, kw_only=True):
    """Milliseconds per call of each compute node, by name, in both engines."""

    float_ms: dict[str, float]
    quantized_ms: dict[str, float]


def node_times(subject: Subject, planned: Planned) -> NodeTimes:
    """Return the times of the subject's nodes; ``planned`` is ONNX Runtime on this machine."""
    context, data = subject.trials.context, subject.trials.data
    graph = subject.trials.reference
    profile = profile_of(context, graph)
    network = subject.plan.write(subject.trials.scheme, context.work / "profiled.onnx")
    plain = build_engine(context, planned, graph, profile, "fp32").manifest
    quantized = build_engine(context, planned, network, profile, "int8").manifest
    inputs = latency_inputs(data, graph, profile)
    key = _TimesKey(
        float_sha256=plain.sha256,
        quantized_sha256=quantized.sha256,
        inputs_sha256=data.info.calibration_sha256,
        machine=machine(),
        version=VERSION,
    )

    def make() -> NodeTimes:
        best: list[dict[str, float]] = [{}, {}]
        engines = [
            (each, admit_measuring(context.store, each).data) for each in (plain, quantized)
        ]
        with context.store.scratch() as folder:
            for _ in range(_ROUNDS):  # in turns: a busy machine slows both
                for index, (manifest, engine) in enumerate(engines):
                    found = _by_node(manifest, engine, inputs, folder)
                    best[index] = {
                        n: min(ms, best[index].get(n, ms)) for n, ms in found.items()
                    }
        return NodeTimes(float_ms=best[0], quantized_ms=best[1])

    return context.remembered("time nodes", "node-times", key, NodeTimes, make)


def _by_node(
    manifest: Manifest, engine: bytes, inputs: dict[str, Array], folder: Path
) -> dict[str, float]:
    """Return the time of each user's compute node; one layer's is shared by its nodes."""
    times = node_ms(engine, inputs, _CALLS, folder)
    nodes = onnx.load_model_from_string(engine).graph.node
    found: dict[str, float] = {}
    for node, layer in zip(nodes, manifest.layers.layers, strict=True):
        if not layer.compute or node.name not in times or not layer.nodes:
            continue
        found[layer.nodes[0]] = times[node.name]
    return found
