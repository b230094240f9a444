"""INT8 on ONNX Runtime: trtbuild's engine, ONNX Runtime's own quantizer, and FP32, in one run.

    .venv/bin/python -m tests.benchmarks.int8_on_cpu resnet50 minilm engines/digits-int8.toml

``resnet50`` is the model of ``tests/benchmarks/resnet50.py``, batch 8; ``minilm`` the recipe's,
timed on 8 texts of 128 tokens. Anything else is a recipe, timed at its profile's ``opt``.

The three sessions take turns on the same inputs, so that a busy machine slows all of them. The
speed-up over FP32 has its 95 % interval, and the tenth and ninetieth percentile of the rounds.
The metric is the provider's; SQNR and cosine are those of the worst output against FP32. All
are over all evaluation data. A second ratio is of processor time on one thread, which waiting
for a core does not lengthen: on a busy machine it is the one to read.

ONNX Runtime's quantizer runs as its documentation advises for x86: ``quant_pre_process``, then
``quantize_static`` with UINT8 activations and per-channel INT8 weights, its default method and
format, on the same exported graph and calibration data. FP32 is ONNX Runtime's default session
of that graph.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from tests.benchmarks import resnet50
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
from trtbuild.verification.latency import measure, speedup
from trtbuild.verification.turns import LatencyPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from trtbuild.batches import Batch, Provider
    from trtbuild.recipe import Recipe
    from trtbuild.verification.accuracy import Candidate, Scores
    from trtbuild.verification.results import Latency

    Samples = npt.NDArray[np.float64]

_FP32, _OURS, _THEIRS = "FP32", "trtbuild INT8", "quantize_static INT8"

_RESNET50 = """
[source]
onnx = "resnet50.onnx"
[quantization]
precision = "int8"
provider = "{provider}"
[build]
targets = ["onnxruntime"]
[build.profiles.images]
min = [1, 3, 224, 224]
opt = [8, 3, 224, 224]
max = [8, 3, 224, 224]
"""

_TEXTS, _TOKENS = 8, 128
_ROUNDS, _CALLS = 15, 3


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Calibration batches as ONNX Runtime reads them."""

    def __init__(self, provider: Provider, names: list[str]) -> None:
        self._batches: Iterator[Any] = iter(provider.calibration_batches())
        self._names = names

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """Return the next batch, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {name: batch[name] for name in self._names}


def _theirs(graph: Path, provider: Provider, names: list[str], folder: Path) -> Path:
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
    return quantized


def _recipe(word: str, folder: Path) -> Recipe:
    if word == "resnet50":
        resnet50.write(folder / "resnet50.onnx")
        path = folder / "resnet50.toml"
        path.write_text(_RESNET50.format(provider=Path(resnet50.__file__).as_posix()))
        return load_recipe(path)
    path = Path("engines/minilm-int8.toml") if word == "minilm" else Path(word)
    recipe = load_recipe(path)
    build = msgspec.structs.replace(recipe.build, targets=("onnxruntime",))
    return msgspec.structs.replace(recipe, build=build)


def _inputs(word: str, recipe: Recipe, provider: Provider, names: list[str]) -> Batch:
    """Return what is timed: evaluation data, of the size that the recipe is made for."""
    if word != "minilm":
        profiles = recipe.build.shape_ranges()
        size = profiles[0].opt[0] if profiles else 1
        return next(rechunk(provider.evaluation_batches(), names, size))
    tokens = itertools.chain.from_iterable(
        batch["input_ids"][batch["attention_mask"] == 1]
        for batch in provider.evaluation_batches()
    )
    first = np.fromiter(itertools.islice(tokens, _TEXTS * _TOKENS), np.int64)
    full = first.reshape(_TEXTS, _TOKENS)
    return {"input_ids": full, "attention_mask": np.ones_like(full)}


def _run(word: str, folder: Path) -> None:
    recipe, store = _recipe(word, folder), str(folder / "store")
    engine = build_recipe(recipe, store).engines[0]
    opened = Store.open(store)
    manifest = find_engine(opened, engine.key).read(Manifest)
    provider = load_provider(recipe.quantization.provider or "", recipe.folder, None)
    part = Part(recipe=recipe, store=opened, say=lambda _: None)
    graph = export(part, folder / "model.onnx").graph
    names = [spec.name for spec in graph.inputs]
    fp32 = open_graph(graph.path, fused=True)
    sha256, quantized = manifest.sha256, _theirs(graph.path, provider, names, folder)
    sessions = {
        _FP32: fp32,
        _OURS: open_session(opened.read(sha256), manifest.preimage.target),
        _THEIRS: open_graph(quantized, fused=True),
    }
    found = compare(fp32, sessions, provider.evaluation_batches(), provider.metric)
    inputs = _inputs(word, recipe, provider, names)
    times = measure(sessions, inputs, LatencyPlan(seconds=3.0, max_seconds=12.0))
    files = {_FP32: graph.path, _OURS: opened.verified_path(sha256), _THEIRS: quantized}
    cpu_ms = _one_thread(files, {name: inputs[name] for name in names})
    name = provider.metric.name if provider.metric else "no metric"
    shape = " x ".join(str(size) for size in inputs[names[0]].shape)
    print(f"\n{recipe.name}, {shape}, {name}:")
    for label, candidate in found.candidates.items():
        accuracy = _accuracy(candidate, found.reference_scores)
        print(
            f"  {label:22}{accuracy}  {_speed(times[_FP32], times[label])}"
            f"; one thread {_paired(cpu_ms[_FP32], cpu_ms[label])}"
        )
    one = _paired(cpu_ms[_THEIRS], cpu_ms[_OURS])
    ours = f"{_speed(times[_THEIRS], times[_OURS])}; one thread {one}"
    print(f"  {'ours over theirs':22}{'':50}  {ours}", flush=True)


def _one_thread(files: Mapping[str, Path], inputs: Batch) -> dict[str, Samples]:
    """Return milliseconds of processor time [rounds, calls] of one-thread sessions in turns."""
    sessions = {}
    for name, path in files.items():
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        if name == _OURS:  # an engine runs as it was optimized
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        sessions[name] = ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    samples: dict[str, list[list[float]]] = {name: [] for name in files}
    for _ in range(_ROUNDS):
        for name, session in sessions.items():
            session.run(None, inputs)
            calls = []
            for _ in range(_CALLS):
                start = time.thread_time_ns()
                session.run(None, inputs)
                calls.append((time.thread_time_ns() - start) / 1e6)
            samples[name].append(calls)
    return {name: np.asarray(rows) for name, rows in samples.items()}


def _paired(slow: Samples, fast: Samples) -> str:
    pairs = np.median(slow, axis=1) / np.median(fast, axis=1)
    low, high = np.percentile(pairs, (10, 90))
    return (
        f"{np.median(fast):.2f} ms, {np.median(slow) / np.median(fast):.2f} x, rounds "
        f"{low:.2f} to {high:.2f}"
    )


def _accuracy(candidate: Candidate, reference: Scores) -> str:
    metric = f"{'':28}"
    if len(reference):
        drop = estimate(reference, candidate.scores, higher_is_better=True).drop
        value = drop.value if drop else float("nan")
        metric = f"metric {candidate.scores.mean():.4f} drop {value:+.4f}"
    sqnr = min((e.sqnr_db for e in candidate.errors if e.sqnr_db is not None), default=np.inf)
    cosine = min((e.cosine for e in candidate.errors if e.cosine is not None), default=1.0)
    return f"{metric:28}  {sqnr:5.1f} dB  cos {cosine:.4f}"


def _speed(slow: Latency, fast: Latency) -> str:
    ratio = speedup(slow, fast)
    return (
        f"p50 {fast.p50.value:8.3f} ms  {ratio.value:.2f} x "
        f"[{ratio.low:.2f}, {ratio.high:.2f}], rounds {ratio.pair_p10:.2f} to "
        f"{ratio.pair_p90:.2f}"
    )


def main() -> None:
    """Measure the models that the command line names."""
    for word in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            _run(word, Path(folder))


if __name__ == "__main__":
    main()
