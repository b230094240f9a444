"""Batches of real inputs: what a provider yields, and what every stage takes.

A batch is a dict of arrays by name. The names of the model's inputs are fed to the model; other
names (labels, for example) are for the metric only. Samples lie along the first axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]
Outputs = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A task metric: the mean of scores of independent units.

    ``score(outputs, batch)`` returns one score per unit (sample, pair, query ...) of the batch,
    shape [n], any n; the metric is the mean over all units of all batches, and the units are
    what a bootstrap resamples.
    """

    name: str
    higher_is_better: bool
    score: Callable[[Outputs, Batch], npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Provider:
    """Calibration and evaluation data of one model: disjoint, and the same at every call.

    ``name`` is what errors call it. Each function returns a fresh iterable of batches at every
    call, in the same order. ``metric`` is ``None`` where the data has none.
    """

    name: str
    calibration_batches: Callable[[], Iterable[Batch]]
    evaluation_batches: Callable[[], Iterable[Batch]]
    metric: Metric | None
