"""Calibration: what it costs over the plain forward pass, beside ONNX Runtime's calibrators.

    .venv/bin/python -m tests.benchmarks.calibration [--rounds 5] [resnet50 minilm digits]

Three workloads: ResNet-50 (the onnx package's graph, He-initialized weights; 64 smooth images
of 224 x 224), MiniLM (real weights, 64 rows of 128 real tokens), a digits CNN (512 images).
Each figure comes from a fresh process, imports not timed; tasks take turns, and every ratio is
of two processes of one round, so that a busy machine slows both. "In turns" observed and plain
forward passes alternate in one process. The forward pass runs in a default session of ONNX
Runtime, without its load; chunks of 8, 8 and 32 as the calibrators of ONNX Runtime get them.
Those begin with the graph that trtbuild simplified, our own job with the exported one. Memory
is the high-water mark of the process, imports included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_static,
)

from tests.graph import light
from trtbuild.backends import tensorrt_rtx
from trtbuild.backends.memory import peak_rss_bytes
from trtbuild.backends.ort_session import open_graph
from trtbuild.batches import rechunk
from trtbuild.graph.model import read_graph
from trtbuild.graph.optimize import optimize
from trtbuild.quantization.calibrate import Collection, calibrate
from trtbuild.quantization.forward import Forward
from trtbuild.quantization.observer import Observers
from trtbuild.quantization.quantize import placement_of, quantize
from trtbuild.quantization.thresholds import thresholds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.graph.models import Array
    from trtbuild.batches import Batch

CHUNKS = {"resnet50": 8, "minilm": 8, "digits": 32}
SAMPLES = {"resnet50": 64, "minilm": 64, "digits": 512}
LONG = {"resnet50": 1024, "minilm": 1024, "digits": 100_000}
TURN = 16
TURNS = 3
TOKENS = 128
METHODS = {
    "ort minmax": CalibrationMethod.MinMax,
    "ort entropy": CalibrationMethod.Entropy,
    "ort percentile": CalibrationMethod.Percentile,
}
OURS = ("observe", "job")
OPERATORS = ["Conv", "Gemm", "MatMul"]
"""All that the calibrators survive on MiniLM; the same for all tools."""


def prepare(name: str, folder: Path) -> None:
    """Write the exported and the simplified graph of a workload, and its data."""
    source = folder / "source.onnx"
    if name == "resnet50":
        _write_resnet(source)
        noise = np.random.default_rng(0).standard_normal((16, 3, 260, 260), dtype=np.float32)
        data = {"gpu_0/data_0": _smooth(noise)}
    else:
        data = _export(name, source)
    np.savez(folder / "data.npz", **data)  # type: ignore[arg-type]  # names are the model's
    optimize(read_graph(source), folder / "optimized.onnx")


def _write_resnet(out: Path) -> None:
    """Open the batch of the light model, which is 1 in its input and its last Reshape."""
    light.write("resnet50", out)
    model = onnx.load(out)
    image = next(v for v in model.graph.input if v.name == "gpu_0/data_0")
    image.type.tensor_type.shape.dim[0].dim_param = "N"
    shape = next(t for t in model.graph.initializer if t.name == "OC2_DUMMY_1")
    shape.CopyFrom(numpy_helper.from_array(np.array([-1, 2048], np.int64), shape.name))
    onnx.save(model, out)


def _smooth(noise: Array) -> Array:
    """Return images [n, 3, 224, 224] whose neighbors are alike, as in photographs."""
    sums = noise.cumsum(axis=2).cumsum(axis=3)
    return np.ascontiguousarray(
        (
            sums[..., 36:, 36:]
            - sums[..., :-36, 36:]
            - sums[..., 36:, :-36]
            + sums[..., :-36, :-36]
        )
        / 36
    )


def _export(name: str, out: Path) -> dict[str, Array]:
    from trtbuild.pipeline.partial import Part, export  # noqa: PLC0415  torch: not in children
    from trtbuild.recipe import load_recipe  # noqa: PLC0415  torch: not in children
    from trtbuild.sources.provider import load_provider  # noqa: PLC0415  torch
    from trtbuild.store import Store  # noqa: PLC0415  torch: not in children

    recipe = load_recipe(Path(f"engines/{name}-int8.toml"))
    with tempfile.TemporaryDirectory() as store:
        export(Part(recipe=recipe, store=Store.open(store), say=lambda _: None), out)
    provider = load_provider(recipe.quantization.provider or "", recipe.folder, None)
    batches = list(provider.calibration_batches())
    names = [spec.name for spec in read_graph(out).inputs]
    data = {each: np.concatenate([batch[each] for batch in batches]) for each in names}
    if name == "minilm":
        real = data["input_ids"][data["attention_mask"] > 0]
        ids = np.resize(real, (64, TOKENS))
        data = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return data


def batches_of(folder: Path, samples: int, size: int) -> Iterator[Batch]:
    """Yield ``samples`` in batches of ``size``, the data of the workload again and again."""
    with np.load(folder / "data.npz") as file:
        data = {name: file[name] for name in file.files}
    length = len(next(iter(data.values())))
    for start in range(0, samples, size):
        rows = np.arange(start, min(start + size, samples)) % length
        yield {name: array[rows] for name, array in data.items()}


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Batches as ONNX Runtime reads them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches

    def get_next(self) -> Batch | None:
        """Return the next batch, or None at the end."""
        return next(self._batches, None)


def forward(folder: Path, samples: int, size: int) -> float:
    """Return the seconds of a plain forward pass over all samples."""
    session = open_graph(folder / "optimized.onnx", fused=True)
    started = time.perf_counter()
    for batch in batches_of(folder, samples, size):
        session.run(batch)
    return time.perf_counter() - started


def observe(folder: Path, samples: int, size: int) -> float:
    """Return the seconds of forward pass and observation, from the first batch on."""
    graph = read_graph(folder / "optimized.onnx")
    placement = placement_of(graph, tensorrt_rtx.SCHEME, ())
    started = 0.0

    def batches() -> Iterator[Batch]:
        nonlocal started
        started = time.perf_counter()
        yield from batches_of(folder, samples, size)

    with tempfile.TemporaryDirectory(dir=folder) as work:
        how = Collection(work=Path(work), progress=lambda _: None)
        calibrate(graph, placement.observed, batches(), how)
    return time.perf_counter() - started


def job(folder: Path, samples: int, size: int) -> float:
    """Return the seconds from the exported graph to the Q/DQ graph in a file."""
    started = time.perf_counter()
    scheme = tensorrt_rtx.SCHEME
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        graph, _ = optimize(read_graph(folder / "source.onnx"), work / "optimized.onnx")
        placement = placement_of(graph, scheme, ())
        how = Collection(work=work, progress=lambda _: None)
        batches = batches_of(folder, samples, size)
        ranges = calibrate(graph, placement.observed, batches, how)
        limits = thresholds(ranges, placement.observed, "percentile-99.999", scheme)
        quantize(graph, placement, limits, scheme, work / "quantized.onnx")
    return time.perf_counter() - started


def turns(folder: Path, samples: int, size: int) -> float:
    """Print ratios of observed to plain forward passes that take turns in one process.

    Of wall and of processor time; the latter says more where others use the processors.
    """
    graph = read_graph(folder / "optimized.onnx")
    tensors = placement_of(graph, tensorrt_rtx.SCHEME, ()).observed
    plain = open_graph(graph.path, fused=True)
    batches = list(batches_of(folder, samples, TURN))
    with tempfile.TemporaryDirectory(dir=folder) as work:
        observed, observers = Forward(graph, tensors, Path(work)), Observers({})
        chunk = observed.chunk_size(batches[0])

        def without(batch: Batch) -> None:
            for part in rechunk([batch], batch, size):
                plain.run(part)

        def with_observation(batch: Batch) -> None:
            for part in rechunk([batch], batch, chunk):
                for arrays in observed.run(part, chunk):
                    observers.update({n: a for n, a in arrays.items() if n in tensors})

        rows = [
            (_timed(without, batch), _timed(with_observation, batch))
            for batch in (batches[0], *batches * TURNS)
        ]
    for index, what in enumerate(("wall", "processor")):
        ratios = [ours[index] / base[index] for base, ours in rows[1:]]  # the first opens
        print(f"{what} x {spread(ratios)}")
    return 0.0


def _timed(run: Callable[[Batch], None], batch: Batch) -> list[float]:
    wall, processor = time.perf_counter(), time.process_time()
    run(batch)
    return [time.perf_counter() - wall, time.process_time() - processor]


def theirs(folder: Path, samples: int, size: int, method: CalibrationMethod) -> float:
    """Return the seconds of ONNX Runtime's ``quantize_static``."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as work:
        quantize_static(
            str(folder / "optimized.onnx"),
            str(Path(work) / "quantized.onnx"),
            _Reader(batches_of(folder, samples, size)),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            op_types_to_quantize=OPERATORS,
        )
    return time.perf_counter() - started


def child(task: str, name: str, folder: Path, samples: int) -> None:
    """Print the seconds and the high-water mark in MiB of one task, as JSON."""
    size = CHUNKS[name]
    if task in METHODS:
        seconds = theirs(folder, samples, size, METHODS[task])
    else:
        run = {"forward": forward, "observe": observe, "job": job, "turns": turns}[task]
        seconds = run(folder, samples, size)
    print(json.dumps([seconds, peak_rss_bytes() / (1 << 20)]))


def started(task: str, name: str, folder: Path, samples: int) -> list[str]:
    """Return the lines that :func:`child` prints, from a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.calibration", "--child", task]
    command += ["--folder", str(folder), "--samples", str(samples), name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def measured(task: str, name: str, folder: Path, samples: int) -> tuple[float, float]:
    """Return seconds and high-water mark in MiB of a task in a fresh process."""
    seconds, mib = json.loads(started(task, name, folder, samples)[-1])
    return seconds, mib


def spread(values: list[float]) -> str:
    """Return the median with the range of all rounds."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def compare(name: str, rounds: int) -> None:
    """Print the table of one workload."""
    tasks = ("forward", *OURS, *METHODS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(name, folder)
        measured("observe", name, folder, CHUNKS[name])  # compiles, if nobody has
        rows: dict[str, list[tuple[float, float]]] = {task: [] for task in tasks}
        for _ in range(rounds):
            for task in tasks:
                rows[task].append(measured(task, name, folder, SAMPLES[name]))
        print(f"\n{name}, {SAMPLES[name]} samples, {rounds} rounds: ratios to the forward pass")
        for task in tasks:
            pairs = list(zip(rows[task], rows["forward"], strict=True))
            wall = spread([ours[0] / plain[0] for ours, plain in pairs])
            peak = spread([ours[1] / plain[1] for ours, plain in pairs])
            seconds = statistics.median(row[0] for row in rows[task])
            mib = statistics.median(row[1] for row in rows[task])
            print(f"  {task:15} {seconds:7.2f} s  x {wall}  {mib:6.0f} MiB  x {peak}")
        print("  in turns:", "; ".join(started("turns", name, folder, 64)[:-1]))
        short, long = (measured("observe", name, folder, n)[1] for n in (64, LONG[name]))
        print(f"  memory, 64 and {LONG[name]} samples: {short:.0f} and {long:.0f} MiB")


def main() -> None:
    """Measure the workloads named on the command line, all by default."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workloads", nargs="*", default=list(CHUNKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--samples", type=int)
    given = parser.parse_args()
    for name in given.workloads:
        if given.child:
            child(given.child, name, given.folder, given.samples)
        else:
            compare(name, given.rounds)


if __name__ == "__main__":
    main()
