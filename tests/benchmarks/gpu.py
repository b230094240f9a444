"""Engines on a GPU against what people use else, in one run; prints Markdown.

    .venv/bin/python -m tests.benchmarks.gpu --models resnet50 minilm detector

Says first what is missing here, runs the rest. Everything takes turns in one contest
(docs/decisions/0015-latency.md): trtbuild's runtime with CUDA graphs and without, TensorRT of
the same engine through Polygraphy, ``torch.compile``, ONNX Runtime's CUDA provider. All get
host arrays and give host arrays. INT8 has no counterpart in the last two, which run in FP16
then: the model's ``half()``, and trtbuild's own FP16 network.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tests.benchmarks import gpu_rivals, resnet50
from trtbuild.backends import NAMES, gpu
from trtbuild.backends.meter import open_meter
from trtbuild.backends.session import SessionOptions
from trtbuild.engine import Manifest
from trtbuild.pipeline.fed import Wish, feed
from trtbuild.pipeline.job import build_recipe
from trtbuild.pipeline.recall import machine
from trtbuild.recipe import load_recipe
from trtbuild.runtime.load import load
from trtbuild.store import Store, find_engine
from trtbuild.verification.contest import HOST, Contestant, ContestPlan, contest
from trtbuild.verification.rates import RatePlan
from trtbuild.verification.turns import HostLane, LatencyPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trtbuild.recipe import Recipe
    from trtbuild.report.document import EngineReport
    from trtbuild.verification.contest import Outcome

MODELS = ("resnet50", "minilm", "detector")
PRECISIONS = ("fp32", "fp16", "int8")
_PACKAGES = {
    "torch": "the models, torch.compile",
    "onnxruntime": "ONNX Runtime (onnxruntime-gpu for its CUDA provider)",
    "tensorrt": "TensorRT",
    "polygraphy": "plain TensorRT",
    "pycuda": "trtbuild's runtime",
    "pynvml": "clocks, throttling, energy",
}
_RECIPE = """
[source]
torch = "{factory}"
[quantization]
precision = "fp32"
provider = "{provider}"
[build.profiles.images]
min = [1, 3, 224, 224]
opt = [8, 3, 224, 224]
max = [32, 3, 224, 224]
"""
_THREADS = (1, 2, 4, 8, 16, 32)
_LOADS = 5


def missing(backend: str) -> list[str]:
    """Return what is not here, one sentence each; the first may make everything impossible."""
    found = [] if gpu.archs() else ["no NVIDIA GPU or driver: nothing can run"]
    if backend not in NAMES:
        found.append(f"trtbuild has no backend {backend}: {', '.join(NAMES)}")
    found += [
        f"{name} is not installed: {use}"
        for name, use in _PACKAGES.items()
        if importlib.util.find_spec(name) is None
    ]
    return found


def table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _recipe(model: str, precision: str, target: str, folder: Path) -> Recipe:
    if model == "minilm":
        given = load_recipe(Path("engines/minilm-int8.toml"))
    else:
        path = folder / f"{model}.toml"
        code = Path(gpu_rivals.__file__).with_name("gpu_models.py").as_posix()
        provider = Path(resnet50.__file__).as_posix()
        path.write_text(_RECIPE.format(factory=f"{code}:{model}", provider=provider))
        given = load_recipe(path)
    return msgspec.structs.replace(
        given,
        quantization=msgspec.structs.replace(given.quantization, precision=precision),
        build=msgspec.structs.replace(given.build, targets=(target,)),
        gates=type(given.gates)(),
    )


def _accuracy(engine: EngineReport) -> str:
    outputs = engine.verification.outputs
    cosine = min((each.cosine for each in outputs if each.cosine is not None), default=1.0)
    drops = [f"{m.drop.value:+.4f}" for m in engine.verification.metrics.values() if m.drop]
    return f"cosine {cosine:.6f}" + (f", drop {drops[0]}" if drops else "")


def _rows(outcome: Outcome, label: str) -> Iterator[tuple[str, ...]]:
    valid = {True: "", False: " INVALID: throttled", None: " (throttling not watched)"}
    for name, _, latency in outcome.latencies:
        rate = outcome.rates[name][0]
        energy = rate.energy
        yield (
            label,
            name + valid[outcome.conditions.valid],
            f"{latency.p50.value:.3f} [{latency.p50.low:.3f}, {latency.p50.high:.3f}]",
            f"{latency.p99.value:.3f} [{latency.p99.low:.3f}, {latency.p99.high:.3f}]",
            f"{rate.inferences_per_s.value:.0f}",
            f"{energy.mj_per_inference.value:.3g}" if energy else rate.no_energy,
        )


def _load_ms(key: str, store: str) -> float:
    """Return the median time from the store to a warm session."""
    times = []
    for _ in range(_LOADS):
        start = time.perf_counter()
        load(key, store).close()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def _race(model: str, precision: str, backend: str, folder: Path) -> None:
    """Build one engine, run it against all that is installed, print its tables."""
    store = str(folder / "store")
    recipe = _recipe(model, precision, f"{backend}:{gpu.archs()[0]}", folder)
    engine = build_recipe(recipe, store, say=partial(print, file=sys.stderr)).engines[0]
    opened = Store.open(store)
    manifest = find_engine(opened, engine.key).read(Manifest)
    arrays = feed(manifest, Wish()).arrays
    size = len(next(iter(arrays.values())))
    plan = ContestPlan(latency=LatencyPlan(seconds=5.0), rate=RatePlan(seconds=5.0))
    with ExitStack() as stack:
        sessions: dict[str, Any] = {
            f"trtbuild, {word}": stack.enter_context(
                load(engine.key, store, options=SessionOptions(cuda_graphs=graphs))
            )
            for word, graphs in (("CUDA graphs", True), ("no graphs", False))
        }
        rivals = gpu_rivals.Rivals(recipe=recipe, store=opened, precision=precision)
        sessions |= rivals.open(opened.read(engine.sha256), backend, folder, stack)
        contestants = [
            Contestant(
                name=name,
                fed="all alike",
                batch_size=size,
                worker=partial(session.run, arrays),
                lanes={HOST: HostLane(session=session, inputs=arrays)},
            )
            for name, session in sessions.items()
        ]
        meter = stack.enter_context(open_meter((manifest.preimage.target,)))
        outcome = contest(contestants, plan, meter, partial(print, file=sys.stderr))
        heading = ("model", "runtime", "p50 ms", "p99 ms", "inferences/s", "mJ each")
        print(
            f"\n{table(heading, list(_rows(outcome, f'{model} {precision}, batch {size}')))}\n"
        )
        for each in outcome.comparisons:
            told = "" if each.distinct else ", cannot be told apart"
            speed = each.speedup
            ratio = f"{speed.value:.2f}x [{speed.low:.2f}, {speed.high:.2f}]{told}"
            print(f"- {each.engine} over {each.baseline}: {ratio}")
        print(
            f"- against PyTorch: {_accuracy(engine)}; load {_load_ms(engine.key, store):.0f} ms"
        )
        for reason in rivals.missing:
            print(f"- missing: {reason}")
        pool = stack.enter_context(
            load(engine.key, store, options=SessionOptions(contexts=max(_THREADS)))
        )
        scaled = msgspec.structs.replace(plan, rate=RatePlan(seconds=5.0, threads=_THREADS))
        one = Contestant(
            name="pool",
            fed="",
            batch_size=size,
            worker=partial(pool.run, arrays),
            lanes={HOST: HostLane(session=pool, inputs=arrays)},
        )
        found = contest([one], scaled, meter, partial(print, file=sys.stderr)).rates["pool"]
        print("- inferences/s by threads: ", end="")
        print(", ".join(f"{r.threads}: {r.inferences_per_s.value:.0f}" for r in found))


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--backend", default="tensorrt", help="tensorrt or tensorrt-rtx")
    given = parser.parse_args()
    lacking = missing(given.backend)
    for reason in lacking:
        print(f"missing: {reason}", file=sys.stderr)
    if not gpu.archs() or given.backend not in NAMES:
        print("nothing was run", file=sys.stderr)
        sys.exit(3)
    print(f"Machine: {machine()}\n\n    {gpu_rivals.versions(_PACKAGES)}")
    with tempfile.TemporaryDirectory() as folder:
        for model in given.models:
            for precision in given.precisions:
                _race(model, precision, given.backend, Path(folder))


if __name__ == "__main__":
    main()
