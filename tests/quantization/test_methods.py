"""Every method against an implementation of its definition that shares no code with it."""

from __future__ import annotations

import functools
import importlib
import math
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import numpy.typing as npt
import pytest
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    CalibrationMethod,
    HistogramCollector,
    create_calibrator,
)

from tests.graph import models
from trtbuild.backends.scheme import Scheme
from trtbuild.quantization.divergence import divergences
from trtbuild.quantization.methods import METHODS, PERCENTILES, amax, candidates
from trtbuild.quantization.observer import Observer
from trtbuild.quantization.thresholds import thresholds, thresholds_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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


SIZE = 49_997
"""No percentile is exactly at one of that many ranks, where rounding would decide."""


def samples(name: str) -> Floats:
    """Return 49,997 values of one distribution, the same at every call."""
    random = np.random.default_rng(7)
    modes = random.normal(1, 0.1, SIZE // 2), random.normal(-6, 0.3, SIZE // 2)
    made = {
        "normal": random.standard_normal(SIZE),
        "relu": np.maximum(random.standard_normal(SIZE), 0),
        "heavy tail": random.standard_t(3, SIZE),
        "outlier": np.append(random.standard_normal(SIZE - 1), 40.0),
        "two modes": np.concatenate(modes),
        "seven values": random.integers(-3, 4, SIZE),
        "two values": random.choice([0.0, 0.3], SIZE),
        "one value": np.full(SIZE, -2.5),
    }
    return np.asarray(made[name], np.float32)


DATA = ("normal", "relu", "heavy tail", "outlier", "two modes")
DISCRETE = ("seven values", "two values", "one value")

LAYERS = {
    "digits": ("stem.0", "blocks.0.conv1", "blocks.4.conv2", "classifier"),
    "minilm": ("layers.0.query", "layers.0.outer", "layers.5.attended"),
}
"""Layers whose inputs are pixels, a ReLU's with rare large values, averages; a normalization's,
a GELU's and an attention's."""


@functools.cache
def activations(name: str) -> dict[str, Floats]:
    """Return what the layers of a recipe's model read on its first calibration batch."""
    torch = importlib.import_module("torch")
    provider = importlib.import_module(f"calibration.{name}")
    model, found = provider.model(), {}
    for layer in LAYERS[name]:

        def keep(_: object, inputs: tuple[Any, ...], layer: str = layer) -> None:
            found[layer] = inputs[0].numpy()

        model.get_submodule(layer).register_forward_pre_hook(keep)
    batch = next(provider.calibration_batches())
    with torch.no_grad():
        model(**{key: torch.from_numpy(value) for key, value in batch.items()})
    return found


def statistics(values: Floats) -> TensorStatistics:
    observer = Observer()
    observer.update(values)
    return observer.statistics()


class Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, arrays: list[Floats]) -> None:
        self._arrays = iter(arrays)

    def get_next(self) -> dict[str, Floats] | None:
        return next(({"x": array} for array in self._arrays), None)


@pytest.mark.parametrize("name", [*DATA, *DISCRETE])
def test_minmax_is_that_of_onnx_runtime(name: str, tmp_path: Path) -> None:
    graph = models.write(
        tmp_path / "m.onnx", "g (float[N] x) => (float[N] y) { y = Neg(x) }", {}
    )
    calibrator = create_calibrator(
        str(graph.path), [], str(tmp_path / "theirs.onnx"), CalibrationMethod.MinMax
    )
    values = samples(name)
    calibrator.collect_data(Batches(np.array_split(values, 10)))
    low, high = calibrator.compute_data()["x"].range_value
    assert amax(statistics(values), "minmax", 127) == max(-low.item(), high.item())


@pytest.mark.parametrize("name", [*DATA, *DISCRETE])
@pytest.mark.parametrize("method", PERCENTILES)
def test_a_percentile_is_that_of_the_magnitudes_up_to_one_bin(name: str, method: str) -> None:
    magnitudes = np.abs(samples(name).astype(np.float64))
    found = statistics(samples(name))
    percent = float(method.removeprefix("percentile-"))
    exact = float(np.percentile(magnitudes, percent, method="inverted_cdf"))
    assert exact <= amax(found, method, 127) <= exact + found.width


@pytest.mark.parametrize("name", [*DATA, *DISCRETE])
@pytest.mark.parametrize("method", PERCENTILES)
def test_a_percentile_is_that_of_onnx_runtime_up_to_its_bins(name: str, method: str) -> None:
    """ONNX Runtime's bins lie between the least and the largest magnitude, ours between 0 and a
    power of two; it takes the lower edge of a bin, trtbuild the upper."""
    values = samples(name)
    percent = float(method.removeprefix("percentile-"))
    collector = HistogramCollector("percentile", True, 2048, 128, percent, None)  # noqa: FBT003  theirs
    collector.collect({"t": [values]})
    ((low, high, *_),) = collector.compute_percentile().values()
    found = statistics(values)
    # A tensor of one value has bins from half below it to half above.
    their_width = max(float(np.ptp(np.abs(values))), 1.0) / 2048
    tolerance = found.width + 2 * their_width
    theirs = max(-float(low), float(high))  # each end is clipped to the values on its side
    assert amax(found, method, 127) == pytest.approx(theirs, abs=tolerance)


def loops(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the divergences of S. Migacz, "8-bit Inference with TensorRT", GTC 2017.

    His loops, for 128 to 2048 bins; on his slides ``range(128, 2048)`` leaves the last out.
    """
    result = np.zeros(2048 - 128 + 1)
    for i in range(128, 2049):
        reference = counts[:i].astype(np.float64)
        reference[i - 1] += counts[i:].sum()
        candidate = np.zeros(i)
        for level in range(128):
            start, stop = level * i // 128, (level + 1) * i // 128
            total, occupied = 0, 0
            for j in range(start, stop):
                total += counts[j]
                occupied += counts[j] > 0
            for j in range(start, stop):
                if counts[j] > 0:
                    candidate[j] = total / occupied
        if candidate.sum() == 0:
            result[i - 128] = np.inf
            continue
        reference /= reference.sum()
        candidate /= candidate.sum()
        for j in range(i):
            if reference[j] > 0 and candidate[j] == 0:
                result[i - 128] = np.inf
            elif reference[j] > 0:
                result[i - 128] += reference[j] * math.log(reference[j] / candidate[j])
    return result


def documented(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Run :func:`loops` compiled: as Python they take a second per histogram."""
    return np.asarray(compiled_loops(counts), np.float64)


compiled_loops: Callable[..., object] = numba.njit(loops)


def without_zeros(found: TensorStatistics) -> npt.NDArray[np.int64]:
    counts = found.counts.copy()
    counts[0] = 0
    return counts


def expect_the_documented_threshold(found: TensorStatistics) -> None:
    """Compare with the loops on every number of bins, then the threshold.

    Two differences: candidates that clip more values than they keep are out, and equal
    divergences, up to rounding, are decided for the larger threshold.
    """
    counts = without_zeros(found)
    ours, theirs = divergences(counts), documented(counts)
    few = 2 * np.cumsum(counts)[127:] < counts.sum()
    assert np.isinf(ours[few]).all()
    theirs[few] = np.inf
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    used = int(np.flatnonzero(counts)[-1]) + 1 - 128
    least = theirs[: used + 1].min()
    kept = 128 + max(i for i in range(used + 1) if theirs[i] <= least + 1e-12)
    assert amax(found, "entropy", 127) == min(kept * found.width, found.amax)


@pytest.mark.parametrize("name", [*DATA, *DISCRETE])
def test_entropy_is_the_documented_algorithm_at_every_threshold(name: str) -> None:
    expect_the_documented_threshold(statistics(samples(name)))


@pytest.mark.frameworks
@pytest.mark.parametrize("name", LAYERS)
def test_entropy_is_the_documented_algorithm_on_activations(name: str) -> None:
    for values in activations(name).values():
        expect_the_documented_threshold(statistics(values))


@pytest.mark.parametrize("name", ["normal", "heavy tail"])
def test_entropy_is_near_that_of_onnx_runtime(name: str) -> None:
    """On the same 2 x 2048 bins and 2 x 128 levels, with zeros left out.

    Theirs merges as many bins into every level and all that remain into the last, truncates
    what it spreads to integers, and moves mass into empty bins, so that neither is infinite.
    The divergence is flat around its least, so that moves the threshold by up to a tenth.
    """
    found = statistics(samples(name))
    counts = without_zeros(found)
    edges = (np.arange(-2048, 2049) * found.width).astype(np.float32)
    collector = HistogramCollector("entropy", True, 4096, 256, None, None)  # noqa: FBT003  theirs
    both = np.concatenate([counts[::-1], counts])
    limit = np.float32(found.amax)
    _, theirs = collector.get_entropy_threshold((both, edges, -limit, limit), 256)
    assert amax(found, "entropy", 127) == pytest.approx(float(theirs), rel=0.1)


def test_entropy_ignores_how_many_values_are_zero() -> None:
    values = samples("relu")
    more = np.append(values, np.zeros(1_000_000, np.float32))
    assert amax(statistics(values), "entropy", 127) == amax(statistics(more), "entropy", 127)


def root_mean_squares(values: Floats, steps: float) -> Callable[[float], float]:
    """Return the error of quantizing raw values, as a function of the threshold."""
    magnitudes = np.abs(values.astype(np.float64))

    def error(threshold: float) -> float:
        step = threshold / steps
        rounded = np.minimum(np.rint(magnitudes / step) * step, threshold)
        return math.sqrt(np.mean((magnitudes - rounded) ** 2))

    return error


def tried(values: Floats) -> Iterator[float]:
    limit = float(np.abs(values).max())
    return (float(t) for t in np.linspace(limit / 100, limit, 300))


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("steps", [127, 200.3, 255])
def test_mse_is_as_good_as_the_best_threshold_over_the_raw_values(
    name: str, steps: float
) -> None:
    """Bin centers stand for values, so the threshold may differ; its error must not."""
    error = root_mean_squares(samples(name), steps)
    best = min(map(error, tried(samples(name))))
    assert error(amax(statistics(samples(name)), "mse", steps)) <= best * 1.025


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("steps", [127, 255])
def test_mse_of_few_values_is_the_best_up_to_one_bin(name: str, steps: float) -> None:
    """Few values can hit steps exactly, which their bins' centers, half a bin off, do not."""
    error, found = root_mean_squares(samples(name), steps), statistics(samples(name))
    best = min(map(error, tried(samples(name))))
    assert error(amax(found, "mse", steps)) <= best + found.width


@pytest.mark.frameworks
@pytest.mark.parametrize("name", LAYERS)
def test_mse_is_the_best_threshold_for_activations(name: str) -> None:
    """The grays of an image are few values, so the bound is wider than above."""
    for values in activations(name).values():
        some = values.reshape(-1)[::101]
        error = root_mean_squares(some, 127)
        best = min(map(error, tried(some)))
        assert error(amax(statistics(some), "mse", 127)) <= best * 1.05


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
