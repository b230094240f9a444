"""Collections that are bounded, long, or killed: same ranges, in the memory they are given."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.graph import models
from tests.quantization import collecting
from trtbuild.errors import UsageError
from trtbuild.quantization.calibrate import Collection, calibrate
from trtbuild.quantization.progress import Progress, load_progress, save_progress
from trtbuild.quantization.ranges import ranges_digest

COMMAND = (sys.executable, "-m", "tests.quantization.collecting")
ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> tuple[str, float]:
    """Return digest and high-water mark in MiB of a collection in a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    digest, mib = done.stdout.splitlines()[-1].split()
    return digest, float(mib)


def quiet(_: int) -> None: ...


def test_a_bound_on_memory_is_kept_and_changes_no_bit(tmp_path: Path) -> None:
    """20 tensors of 4 MiB each in a chunk; the bound leaves room for less than half of them."""
    graph = collecting.chain(tmp_path, channels=32, size=64, layers=10)
    digest, free_mib = run(graph.path, 40)
    bound = int(free_mib - 50)
    bounded, mib = run(graph.path, 40, "--memory", bound)
    assert bounded == digest
    assert mib <= bound * 1.02


def test_a_bound_that_cannot_be_kept_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    graph = collecting.chain(tmp_path, channels=16, size=16, layers=2)
    with pytest.raises(UsageError, match=r"--calib-memory 10: .* need \d+ MiB"):
        collecting.collect(graph, 10, Collection(work=tmp_path, progress=quiet, memory_mib=10))


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    graph = collecting.chain(tmp_path, channels=16, size=8, layers=3)
    _, few_mib = run(graph.path, 1_000)
    _, many_mib = run(graph.path, 20_000)
    assert many_mib <= few_mib * 1.05


def test_a_killed_collection_goes_on_and_has_the_same_bits(tmp_path: Path) -> None:
    graph = collecting.chain(tmp_path, channels=16, size=32, layers=4)
    samples, folder = 3_000, tmp_path / "store"
    command = [*COMMAND, str(graph.path), str(samples), "--checkpoint", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(5):
            assert child.stdout.readline() == "saved\n"
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    seen: list[int] = []
    stored = collecting.saved(folder)
    how = Collection(work=tmp_path, progress=seen.append, checkpoint=stored)
    resumed = collecting.collect(graph, samples, how)
    whole: list[int] = []
    plain = Collection(work=tmp_path, progress=whole.append)
    assert ranges_digest(resumed) == ranges_digest(collecting.collect(graph, samples, plain))
    assert len(whole) - len(seen) >= 5
    assert whole[-len(seen) :] == seen
    stored.remove()
    assert stored.load() is None


def test_a_damaged_checkpoint_is_none(tmp_path: Path) -> None:
    graph = collecting.chain(tmp_path, channels=16, size=8, layers=1)
    how = Collection(work=tmp_path, progress=quiet)
    data = save_progress(Progress(chunks=3, ranges=collecting.collect(graph, 10, how)))
    assert load_progress(data).chunks == 3
    assert ranges_digest(load_progress(data).ranges) == ranges_digest(
        collecting.collect(graph, 10, how)
    )
    for place in (0, 40, len(data) // 2, len(data) - 1):
        damaged = bytearray(data)
        damaged[place] ^= 1
        assert load_progress(bytes(damaged)) == Progress()
    for short in (b"", data[:20], data[: len(data) // 2]):
        assert load_progress(short) == Progress()


def test_a_checkpoint_that_nobody_came_back_for_goes_after_a_week(tmp_path: Path) -> None:
    stored = collecting.saved(tmp_path)
    stored.save(b"old")
    assert stored.load() == b"old"
    other = stored.path.with_name(re.sub("0", "1", stored.path.name))
    stored.path.rename(other)
    stored.save(b"new")
    week = time.time() - 8 * 24 * 3600
    os.utime(other, (week, week))
    stored.remove()
    assert not other.exists()
    assert stored.load() is None


def test_chunks_follow_from_shapes_not_from_what_came_first(tmp_path: Path) -> None:
    """Images of 8 and of 256 pixels: the large ones run in smaller chunks, in any order."""
    text = "g (float[N, 4, H, W] x) => (float[N, 16, H, W] y) { c = Conv(x, w) y = Relu(c) }"
    weights = {"w": models.normal(16, 4, 1, 1)}
    graph = models.write(tmp_path / "m.onnx", text, weights)
    images = [models.normal(n, 4, s, s, seed=n) for n, s in ((9, 8), (20, 512))]
    digests, counted = set(), []
    for order in (images, images[::-1], [images[1][:3], images[0], images[1][3:]]):
        seen: list[int] = []
        how = Collection(work=tmp_path, progress=seen.append)
        feeds = [{"x": image} for image in order]
        digests.add(ranges_digest(calibrate(graph, ("c", "y"), feeds, how)))
        counted.append(sorted(np.diff([0, *seen]).tolist()))
    assert len(digests) == 1
    assert counted == [[4, 4, 4, 4, 4, 9]] * 3
