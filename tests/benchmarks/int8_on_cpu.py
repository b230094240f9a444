"""INT8 on ONNX Runtime: trtbuild's engine, ONNX Runtime's own quantizer, and FP32, in one run.

    .venv/bin/python -m tests.benchmarks.int8_on_cpu engines/digits-int8.toml ...

The three sessions take turns on the same inputs, so that a busy machine slows all of them; the
speed-up over FP32 has its 95 % interval. The metric is the provider's, on all evaluation data.
ONNX Runtime's quantizer runs as its documentation advises for x86: ``quant_pre_process``, then
``quantize_static`` with UINT8 activations and per-channel INT8 weights, its default method and
format, on the same exported graph and calibration data.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from trtbuild.backends.ort_session import open_graph, open_session
from trtbuild.batches import rechunk
from trtbuild.engine import Manifest
from trtbuild.pipeline.job import build_recipe
from trtbuild.pipeline.partial import Part, export
from trtbuild.recipe import load_recipe
from trtbuild.sources.provider import load_provider
from trtbuild.store import Store, find_engine
from trtbuild.verification.accuracy import compare
from trtbuild.verification.bootstrap import estimate
from trtbuild.verification.latency import LatencyPlan, measure, speedup

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from trtbuild.backends import Session
    from trtbuild.batches import Provider
    from trtbuild.recipe import Recipe


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Calibration batches as ONNX Runtime reads them."""

    def __init__(self, provider: Provider, names: list[str]) -> None:
        self._batches: Iterator[Any] = iter(provider.calibration_batches())
        self._names = names

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """Return the next batch, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {name: batch[name] for name in self._names}


def _theirs(graph: Path, provider: Provider, names: list[str], folder: Path) -> Session:
    prepared, quantized = folder / "prepared.onnx", folder / "quantized.onnx"
    quant_pre_process(str(graph), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(quantized),
        _Reader(provider, names),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return open_graph(quantized, fused=True)


def _run(recipe: Recipe, store: str) -> None:
    wanted = msgspec.structs.replace(recipe.build, targets=("onnxruntime",))
    recipe = msgspec.structs.replace(recipe, build=wanted)
    report = build_recipe(recipe, store)
    opened = Store.open(store)
    engine = report.engines[0]
    manifest = find_engine(opened, engine.key).read(Manifest)
    provider = load_provider(recipe.quantization.provider or "", recipe.folder, None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        part = Part(recipe=recipe, store=opened, say=lambda _: None)
        graph = export(part, folder / "model.onnx").graph
        names = [spec.name for spec in graph.inputs]
        fp32 = open_graph(graph.path, fused=True)
        sessions = {
            "FP32": fp32,
            "trtbuild INT8": open_session(
                opened.read(manifest.sha256), manifest.preimage.target
            ),
            "quantize_static INT8": _theirs(graph.path, provider, names, folder),
        }
        found = compare(fp32, sessions, provider.evaluation_batches(), provider.metric)
        profiles = recipe.build.shape_ranges()
        size = profiles[0].opt[0] if profiles else 1
        inputs = next(rechunk(provider.evaluation_batches(), names, size))
        times = measure(sessions, inputs, LatencyPlan(seconds=5.0, max_seconds=20.0))
    print(f"\n{recipe.name}, batch {size}: {provider.metric.name if provider.metric else '-'}")
    for label, candidate in found.candidates.items():
        ratio = speedup(times["FP32"], times[label])
        drop = estimate(found.reference_scores, candidate.scores, higher_is_better=True).drop
        print(
            f"  {label:22} metric {candidate.scores.mean():.4f}  "
            f"drop {drop.value if drop else float('nan'):+.4f}  "
            f"p50 {times[label].p50.value:8.3f} ms"
            f"  speed-up {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
        )


def main() -> None:
    """Measure the recipes named on the command line."""
    with tempfile.TemporaryDirectory() as store:
        for path in sys.argv[1:]:
            _run(load_recipe(Path(path)), store)


if __name__ == "__main__":
    main()
