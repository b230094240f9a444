"""A large ONNX file built for ONNX Runtime, against ONNX Runtime writing its optimized model.

    .venv/bin/python -m tests.benchmarks.large_model [MIB]

The command checks, hashes, optimizes and stores the model, and builds in a child process; a
script around ONNX Runtime does the build alone. Then once more, for what is a full cache hit.
Processor and memory are those of the whole command, children included; the ratio's range is
over all rounds, in turns. ``MIB`` is the size of the weights (384).
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROUNDS = 5
WIDTH = 4096
SCRIPT = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.optimized_model_filepath = sys.argv[2]
options.log_severity_level = 3
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


def write_model(path: Path, mib: int) -> None:
    """Write a chain of products with weights of ``mib`` MiB in all."""
    rng = np.random.default_rng(0)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", WIDTH]) for n in "xy"]
    nodes, weights, last = [], [], "x"
    count = max(1, mib // (WIDTH * WIDTH * 4 >> 20))
    for index in range(count):
        weight = rng.standard_normal((WIDTH, WIDTH), dtype=np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"m{index}"]))
        last = "y" if index == count - 1 else f"r{index}"
        nodes.append(helper.make_node("Relu", [f"m{index}"], [last]))
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)


def measured(arguments: list[str], folder: Path) -> tuple[float, float, float]:
    """Return seconds by the clock and of processor, and peak MiB of memory, of a command."""
    started = time.perf_counter()
    child = subprocess.Popen(arguments, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    elapsed = time.perf_counter() - started
    if child.returncode:
        sys.exit(f"{arguments[0]} failed: {child.returncode}")
    return elapsed, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main(mib: int) -> None:
    """Print what each takes, and the ratios of the command over the script."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Not here: a child's peak of memory begins with that of who starts it.
        writer = multiprocessing.get_context("spawn").Process(
            target=write_model, args=(folder / "model.onnx", mib)
        )
        writer.start()
        writer.join()
        program = [sys.executable, "-m", "trtbuild", "engine", "model.onnx", "-q"]
        program += ["--backend", "onnxruntime", "--store"]
        alone, command, hit = [], [], []
        for index in range(ROUNDS):
            script = [sys.executable, "-c", SCRIPT, "model.onnx", f"optimized-{index}.onnx"]
            alone.append(measured(script, folder))
            command.append(measured([*program, f"store-{index}"], folder))
            hit.append(measured([*program, f"store-{index}"], folder))
            (folder / f"optimized-{index}.onnx").unlink()
            shutil.rmtree(folder / f"store-{index}")
    for what, runs in (("onnxruntime", alone), ("trtbuild", command), ("again, a hit", hit)):
        middle = [statistics.median(column) for column in zip(*runs, strict=True)]
        print(f"{what}: {middle[0]:.2f} s, processor {middle[1]:.2f} s, {middle[2]:.0f} MiB")
    for index, what in enumerate(("clock", "processor", "memory")):
        ratios = [run[index] / base[index] for run, base in zip(command, alone, strict=True)]
        print(f"{what}: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 384)
