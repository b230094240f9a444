"""Engines on a GPU against what people use else, in one run; prints Markdown.

    .venv/bin/python -m tests.benchmarks.gpu --models resnet50 minilm detector

Says first what is missing here, runs the rest. Everything takes turns in one contest
(docs/decisions/0015-latency.md): trtbuild's runtime with CUDA graphs and without, TensorRT of
the same engine through Polygraphy, ``torch.compile``, ONNX Runtime's CUDA provider. All get
host arrays and give host arrays. INT8 has no counterpart in the last two, which run in FP16
then: the model's ``half()``, and trtbuild's own FP16 network. ``torch.compile`` has CUDA graphs
of its own where latency is measured, and none where threads call it.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tests.benchmarks import gpu_rivals, resnet50
from trtbuild.backends import NAMES, gpu, gpu_lock
from trtbuild.backends.meter import open_meter
from trtbuild.backends.session import SessionOptions
from trtbuild.engine import Manifest
from trtbuild.errors import TrtbuildError
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
    from collections.abc import Callable, Iterator, Mapping

    from tests.benchmarks.gpu_rivals import Arrays, Rival
    from trtbuild.backends import Session
    from trtbuild.backends.meter import Meter
    from trtbuild.backends.session import LoadedSession
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
_SECONDS = 5.0


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


def conditions(command: list[str]) -> str:
    """Return what a reader needs to repeat the run: the command, machine, driver, versions."""
    found = ["command: python -m tests.benchmarks.gpu " + shlex.join(command)]
    found.append(f"machine: {machine()}")
    if importlib.util.find_spec("pynvml"):
        from trtbuild.backends import nvml  # noqa: PLC0415  optional, and needs a driver

        found.append(f"driver: {nvml.describe()['driver']}")
    found.append("CUDA of the driver: " + ".".join(map(str, gpu.driver_cuda())))
    found.append(gpu_rivals.versions(_PACKAGES))
    return "\n".join(f"    {line}" for line in found)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def built(model: str, precision: str, backend: str, folder: Path) -> EngineReport | str:
    """Return the engine of one row, or why there is none."""
    recipe = _recipe(model, precision, f"{backend}:{gpu.archs()[0]}", folder)
    try:
        report = build_recipe(recipe, str(folder / "store"), say=_say)
    except TrtbuildError as error:
        return str(error)
    if not report.engines:
        return "; ".join(each.reason for each in report.skipped_targets)
    return report.engines[0]


class _Race:
    """One engine of the store against all that is installed."""

    def __init__(self, engine: EngineReport, store: str) -> None:
        self.engine = engine
        self.store = store
        self.manifest = find_engine(Store.open(store), engine.key).read(Manifest)
        self.arrays = feed(self.manifest, Wish()).arrays
        self.size = len(next(iter(self.arrays.values())))

    def load(self, options: SessionOptions) -> LoadedSession:
        return load(self.engine.key, self.store, options=options)

    def contestant(
        self, name: str, session: Session, call: Callable[[Arrays], object]
    ) -> Contestant:
        return Contestant(
            name=name,
            fed="all alike",
            batch_size=self.size,
            worker=partial(call, self.arrays),
            lanes={HOST: HostLane(session=session, inputs=self.arrays)},
        )

    def against(self, rivals: Mapping[str, Rival], meter: Meter) -> Outcome:
        """Return what one contest of trtbuild's runtime with and without graphs, and all."""
        plan = ContestPlan(
            latency=LatencyPlan(seconds=_SECONDS), rate=RatePlan(seconds=_SECONDS)
        )
        with ExitStack() as stack:
            contestants = []
            for word, graphs in (("CUDA graphs", True), ("no graphs", False)):
                options = SessionOptions(cuda_graphs=graphs)
                session = stack.enter_context(self.load(options))
                contestants.append(self.contestant(f"trtbuild, {word}", session, session.run))
            contestants += [
                self.contestant(name, each, each.threaded) for name, each in rivals.items()
            ]
            return contest(contestants, plan, meter, _say)

    def by_threads(self, meter: Meter) -> str:
        """Return the throughput of one session by the number of its callers."""
        rate = RatePlan(seconds=_SECONDS, threads=_THREADS)
        plan = ContestPlan(latency=LatencyPlan(seconds=_SECONDS), rate=rate)
        with self.load(SessionOptions(contexts=max(_THREADS))) as pool:
            one = self.contestant("pool", pool, pool.run)
            found = contest([one], plan, meter, _say).rates["pool"]
        return ", ".join(f"{r.threads}: {r.inferences_per_s.value:.0f}" for r in found)


def race(model: str, precision: str, backend: str, folder: Path) -> None:
    """Build one engine, run it against all that is installed, print its tables."""
    engine = built(model, precision, backend, folder)
    if isinstance(engine, str):
        print(f"\n{model} {precision}: no engine: {engine}")
        return
    one = _Race(engine, str(folder / "store"))
    targets = (one.manifest.preimage.target,)
    with ExitStack() as stack:
        stack.enter_context(gpu_lock.all_of(gpu_lock.measured(targets), _say))
        meter = stack.enter_context(open_meter(targets))
        opened = Store.open(one.store)
        recipe = _recipe(model, precision, str(targets[0]), folder)
        rivals = gpu_rivals.Rivals(recipe=recipe, store=opened, precision=precision)
        plan = opened.read(engine.sha256)
        outcome = one.against(rivals.open(plan, backend, folder, stack, one.arrays), meter)
        heading = ("model", "runtime", "p50 ms", "p99 ms", "inferences/s", "mJ each")
        label = f"{model} {precision}, batch {one.size}"
        print(f"\n{table(heading, list(_rows(outcome, label)))}\n")
        for each in outcome.comparisons:
            told = "" if each.distinct else ", cannot be told apart"
            speed = each.speedup
            ratio = f"{speed.value:.2f}x [{speed.low:.2f}, {speed.high:.2f}]{told}"
            print(f"- {each.engine} over {each.baseline}: {ratio}")
        loading = f"load {_load_ms(engine.key, one.store):.0f} ms"
        print(f"- against PyTorch: {_accuracy(engine)}; {loading}")
        for reason in rivals.missing:
            print(f"- missing: {reason}")
        print(f"- inferences/s by threads: {one.by_threads(meter)}")


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
    print(conditions(sys.argv[1:]))
    with tempfile.TemporaryDirectory() as folder:
        for model in given.models:
            for precision in given.precisions:
                race(model, precision, given.backend, Path(folder))


if __name__ == "__main__":
    main()
