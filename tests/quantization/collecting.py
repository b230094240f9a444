"""A calibration in a process of its own, for tests that measure its memory or kill it.

    python -m tests.quantization.collecting GRAPH SAMPLES [--memory MIB] [--checkpoint FOLDER]

Prints ``saved`` at every chunk that a checkpoint has, then digest and high-water mark in MiB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.graph import models
from trtbuild.backends.memory import peak_rss_bytes
from trtbuild.graph.model import read_graph
from trtbuild.graph.optimize import optimize
from trtbuild.quantization.calibrate import Collection, calibrate
from trtbuild.quantization.casting import float_tensors
from trtbuild.quantization.ranges import ranges_digest
from trtbuild.store import Store
from trtbuild.store.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trtbuild.batches import Batch
    from trtbuild.graph import Graph
    from trtbuild.quantization.ranges import Ranges
    from trtbuild.store.checkpoint import StoredCheckpoint

KEY = "0" * 64
BATCH = 50


def chain(folder: Path, *, channels: int, size: int, layers: int) -> Graph:
    """Write ``layers`` convolutions of images [N, 4, size, size] with as many channels each."""
    names = ["x", *(f"r{i}" for i in range(layers))]
    lines = [
        f"c{i} = Conv<pads = [1, 1, 1, 1]>({names[i]}, w{min(i, 1)}) r{i} = Relu(c{i})"
        for i in range(layers)
    ]
    output = f"float[N, {channels}, {size}, {size}] r{layers - 1}"
    text = f"g (float[N, 4, {size}, {size}] x) => ({output}) {{ {' '.join(lines)} }}"
    weights = {
        "w0": models.normal(channels, 4, 3, 3) / 6,
        "w1": models.normal(channels, channels, 3, 3, seed=1) / (3 * channels**0.5),
    }
    source = models.write(folder / "source.onnx", text, weights)
    return optimize(source, folder / "chain.onnx")[0]


def batches(graph: Graph, samples: int) -> Iterator[Batch]:
    """Yield images made as they are needed."""
    (spec,) = graph.inputs
    shape = [int(size) for size in spec.shape[1:]]
    for start in range(0, samples, BATCH):
        yield {spec.name: models.normal(min(BATCH, samples - start), *shape, seed=start)}


class Announced:
    """A checkpoint that prints when it was saved."""

    def __init__(self, folder: Path) -> None:
        self._stored = saved(folder)

    def load(self) -> bytes | None:
        """Return what was saved last."""
        return self._stored.load()

    def save(self, data: bytes) -> None:
        """Save, then say so."""
        self._stored.save(data)
        sys.stdout.write("saved\n")
        sys.stdout.flush()


def saved(folder: Path) -> StoredCheckpoint:
    """Return the checkpoint that all collections with the store in ``folder`` share."""
    return checkpoint(Store.open(str(folder)), "ranges", KEY)


def collect(graph: Graph, samples: int, how: Collection) -> Ranges:
    """Return the ranges of all float tensors."""
    return calibrate(graph, float_tensors(graph), batches(graph, samples), how)


def main() -> None:
    """Collect as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("graph", type=Path)
    parser.add_argument("samples", type=int)
    parser.add_argument("--memory", type=int)
    parser.add_argument("--checkpoint", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        how = Collection(
            work=Path(work),
            progress=lambda _: None,
            memory_mib=given.memory,
            checkpoint=Announced(given.checkpoint) if given.checkpoint else None,
            save_every_s=0.0,
        )
        ranges = collect(read_graph(given.graph), given.samples, how)
    sys.stdout.write(f"{ranges_digest(ranges)} {peak_rss_bytes() / (1 << 20)}\n")


if __name__ == "__main__":
    main()
