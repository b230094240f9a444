"""Every method against an implementation of its definition that shares no code with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from onnxruntime.quantization.calibrate import HistogramCollector

from trtbuild.backends.scheme import Scheme
from trtbuild.quantization.methods import METHODS, PERCENTILES, amax, candidates
from trtbuild.quantization.observer import Observer
from trtbuild.quantization.thresholds import thresholds, thresholds_digest

if TYPE_CHECKING:
    from trtbuild.quantization.ranges import TensorStatistics

Floats = npt.NDArray[Any]

SYMMETRIC = Scheme(
    name="s8",
    activation="int8",
    requantize_outputs=(),
    bias="float",
    compute=("Conv",),
    carriers=(),
)
ASYMMETRIC = Scheme(
    name="u8",
    activation="uint8",
    requantize_outputs=("Conv",),
    bias="int32",
    compute=("Conv",),
    carriers=(),
)


def samples(name: str) -> Floats:
    """Return 50,000 values of one distribution, the same at every call."""
    random = np.random.default_rng(7)
    made = {
        "normal": random.standard_normal(50_000),
        "relu": np.maximum(random.standard_normal(50_000), 0),
        "heavy tail": random.standard_t(3, 50_000),
        "outlier": np.append(random.standard_normal(49_999), 40.0),
    }
    return made[name].astype(np.float32)


DATA = ("normal", "relu", "heavy tail", "outlier")


def statistics(values: Floats) -> TensorStatistics:
    observer = Observer()
    observer.update(values)
    return observer.statistics()


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("method", PERCENTILES)
def test_a_percentile_is_the_magnitude_of_that_rank_up_to_one_bin(
    name: str, method: str
) -> None:
    values = samples(name)
    found = amax(statistics(values), method, 127)
    ordered = np.sort(np.abs(values.astype(np.float64)))
    rank = math.ceil(len(ordered) * float(method.removeprefix("percentile-")) / 100)
    exact = ordered[rank - 1]
    assert exact <= found <= exact + statistics(values).width


@pytest.mark.parametrize("name", DATA)
def test_a_percentile_is_that_of_onnx_runtime_up_to_one_of_its_bins(name: str) -> None:
    """ONNX Runtime's bins end at the largest magnitude, ours at a power of two."""
    values = samples(name)
    collector = HistogramCollector("percentile", True, 2048, 128, 99.99, None)  # noqa: FBT003  theirs
    collector.collect({"t": [values]})
    (theirs,) = (pair[1] for pair in collector.compute_percentile().values())
    found = statistics(values)
    tolerance = found.width + found.amax / 2048 * 2
    assert amax(found, "percentile-99.99", 127) == pytest.approx(float(theirs), abs=tolerance)


def divergence(counts: list[int], kept: int) -> float:
    """Return KL(P, Q) of the algorithm in TensorRT's GTC 2017 talk, written as its loops."""
    reference = [float(count) for count in counts[:kept]]
    reference[-1] += sum(counts[kept:])
    quantized = [0.0] * kept
    for level in range(128):
        start, stop = level * kept // 128, (level + 1) * kept // 128
        occupied = [i for i in range(start, stop) if counts[i] > 0]
        for i in occupied:
            quantized[i] = sum(counts[start:stop]) / len(occupied)
    p_sum, q_sum = sum(reference), sum(quantized)
    total = 0.0
    for p, q in zip(reference, quantized, strict=True):
        if p > 0:
            total += p / p_sum * math.log(p / p_sum / max(q / q_sum, 2.2250738585072014e-308))
    return total


@pytest.mark.parametrize("name", ["normal", "heavy tail"])
def test_entropy_finds_the_least_divergence_of_its_candidates(name: str) -> None:
    """Every eighth threshold and the largest, then all near the best, as documented."""
    found = statistics(samples(name))
    counts = found.counts.tolist()
    counts[0] = 0
    last = max(i for i, count in enumerate(counts) if count) + 1
    coarse = min((*range(128, last, 8), last), key=lambda kept: divergence(counts, kept))
    fine = range(max(coarse - 8, 128), min(coarse + 8, last) + 1)
    best = min(fine, key=lambda kept: divergence(counts, kept))
    assert amax(found, "entropy", 127) == min(best * found.width, found.amax)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("steps", [127, 255])
def test_mse_is_as_good_as_the_best_threshold_over_the_raw_values(
    name: str, steps: int
) -> None:
    """Bin centers stand for values, so the threshold may differ; its error must not."""
    values = np.abs(samples(name).astype(np.float64))

    def error(threshold: float) -> float:
        step = threshold / steps
        rounded = np.minimum(np.rint(values / step) * step, threshold)
        return float(np.mean((values - rounded) ** 2))

    found = amax(statistics(samples(name)), "mse", steps)
    best = min(error(float(t)) for t in np.linspace(values.max() / 100, values.max(), 300))
    assert error(found) <= best * 1.05


def test_methods_see_only_magnitudes_and_scale_with_them() -> None:
    values = samples("heavy tail")
    for method in METHODS:
        plain = amax(statistics(values), method, 127)
        assert amax(statistics(-values), method, 127) == plain
        assert amax(statistics(values * 1024), method, 127) == plain * 1024
        assert 0 < plain <= float(np.abs(values).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [1e-38, 2.5, 3e38])
def test_a_tensor_of_one_magnitude_keeps_it_up_to_one_bin(method: str, value: float) -> None:
    found = statistics(np.full(100, value, np.float32))
    assert amax(found, method, 127) == pytest.approx(float(np.float32(value)), rel=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_threshold_zero(method: str) -> None:
    assert amax(statistics(np.zeros(8, np.float32)), method, 127) == 0


def test_the_words_of_a_recipe_stand_for_methods() -> None:
    assert candidates("auto") == METHODS
    assert candidates("percentile") == PERCENTILES
    assert candidates("mse") == ("mse",)


@pytest.mark.parametrize("method", METHODS)
def test_intervals_are_symmetric_or_what_the_tensor_uses(method: str) -> None:
    ranges = {"relu": statistics(samples("relu")), "zero": statistics(np.zeros(4))}
    limit = amax(ranges["relu"], method, 127)
    symmetric = thresholds(ranges, ranges, method, SYMMETRIC)
    assert symmetric == {"relu": (-limit, limit), "zero": (0.0, 0.0)}
    asymmetric = thresholds(ranges, ["relu"], method, ASYMMETRIC)
    assert asymmetric["relu"][0] == 0
    assert asymmetric["relu"][1] == amax(ranges["relu"], method, 255)
    assert thresholds_digest(symmetric) != thresholds_digest(asymmetric)


def test_an_interval_reaches_to_zero_even_where_the_tensor_does_not() -> None:
    ranges = {"t": statistics(np.array([2.0, 3.0])), "u": statistics(np.array([-3.0, -2.0]))}
    assert thresholds(ranges, ranges, "minmax", ASYMMETRIC) == {"t": (0, 3), "u": (-3, 0)}
