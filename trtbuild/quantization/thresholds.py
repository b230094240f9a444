"""The interval that each quantized tensor keeps, for one method and one scheme."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.canonical import digest
from trtbuild.quantization.fp8 import fp8_amax
from trtbuild.quantization.methods import amax

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trtbuild.backends.scheme import Scheme
    from trtbuild.quantization.ranges import TensorStatistics

Thresholds = dict[str, tuple[float, float]]
"""Lowest and highest value that stays unclipped, by tensor name; both contain 0."""

INT8_STEPS = 127
UINT8_STEPS = 255


def thresholds(
    ranges: Mapping[str, TensorStatistics],
    tensors: Iterable[str],
    method: str,
    scheme: Scheme,
) -> Thresholds:
    """Return the interval of each tensor by ``method``.

    Symmetric schemes get ``(-amax, amax)``. Asymmetric ones get the part of it in which the
    tensor has values, extended to 0, so that 0 has an exact code.
    """
    result: Thresholds = {}
    for name in tensors:
        statistics = ranges[name]
        if scheme.activation == "fp8":
            limit = fp8_amax(statistics, method)
            result[name] = (-limit, limit)
            continue
        if scheme.activation == "int8":
            limit = amax(statistics, method, INT8_STEPS)
            result[name] = (-limit, limit)
            continue
        low, high = min(statistics.minimum, 0.0), max(statistics.maximum, 0.0)
        span = high - low
        steps = UINT8_STEPS * statistics.amax / span if span else UINT8_STEPS
        limit = amax(statistics, method, steps)
        result[name] = (max(low, -limit), min(high, limit))
    return result


def thresholds_digest(values: Mapping[str, tuple[float, float]]) -> str:
    """Return the sha256 (64 hex digits) of the intervals: equal scales are equal networks."""
    plain = {name: [low.hex(), high.hex()] for name, (low, high) in values.items()}
    return digest("thresholds/v1", plain)
