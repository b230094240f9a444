"""Under which conditions a device worked: clocks, and what held them down.

A run whose clocks were lowered is invalid as a whole: which of its calls suffered cannot be
told, so that none may be left out as an outlier.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from trtbuild.backends.meter import HARMLESS
from trtbuild.engine import Value

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from trtbuild.backends.meter import Meter, Reading

T = TypeVar("T")

ATTEMPTS = 3
"""How often a run is measured before it is given up as invalid."""

_PERIOD_S = 0.1
_COOLING_S = 20.0
_LOOK_S = 0.5


class Spread(Value, frozen=True, kw_only=True):
    """The smallest, the middle and the largest of the readings of one figure."""

    low: float
    median: float
    high: float


class Conditions(Value, frozen=True, kw_only=True):
    """What a device told of itself during a run.

    ``reasons`` counts readings by what set the clocks. A figure that the device did not give is
    ``None``, and ``absent`` has the reason by the figure's name.
    """

    device: str
    readings: int
    sm_mhz: Spread | None
    memory_mhz: Spread | None
    temperature_c: Spread | None
    power_mw: Spread | None
    reasons: dict[str, int] | None
    absent: dict[str, str]

    @property
    def throttling(self) -> tuple[str, ...]:
        """The reasons for which the run is invalid; empty where none is known."""
        return tuple(word for word in self.reasons or {} if word not in HARMLESS)

    @property
    def valid(self) -> bool | None:
        """Whether nothing held the clocks down; ``None`` where the device does not tell."""
        return None if self.reasons is None else not self.throttling


class Watch:
    """Reads a meter ten times a second while its body runs, at least twice."""

    def __init__(self, meter: Meter, period_s: float = _PERIOD_S) -> None:
        self._meter = meter
        self._period_s = period_s
        self._readings: list[Reading] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Begin to read; a device without instruments needs no thread."""
        self._readings.append(self._meter.read())
        if self._meter.device:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Read a last time."""
        self._over.set()
        if self._meter.device:
            self._thread.join()
        self._readings.append(self._meter.read())

    def _watch(self) -> None:
        while not self._over.wait(self._period_s):
            self._readings.append(self._meter.read())

    def conditions(self) -> Conditions:
        """Return what was read."""
        found = self._readings
        reasons = [each.reasons for each in found if each.reasons is not None]
        words = [word for each in reasons for word in each]
        return Conditions(
            device=self._meter.device,
            readings=len(found) if self._meter.device else 0,
            sm_mhz=_spread([each.sm_mhz for each in found]),
            memory_mhz=_spread([each.memory_mhz for each in found]),
            temperature_c=_spread([each.temperature_c for each in found]),
            power_mw=_spread([each.power_mw for each in found]),
            reasons={word: words.count(word) for word in sorted(set(words))}
            if reasons
            else None,
            absent=dict(self._meter.absent),
        )


def _spread(figures: list[int | None]) -> Spread | None:
    given = [figure for figure in figures if figure is not None]
    if not given:
        return None
    return Spread(low=min(given), median=float(np.median(given)), high=max(given))


def calm(
    run: Callable[[], T], meter: Meter, attempts: int, say: Callable[[str], None]
) -> tuple[T, Conditions, int]:
    """Return what ``run`` measures, its conditions, and how many runs there were.

    A run on a device that throttled is thrown away and repeated, after a pause of 20 s at most
    in which nothing holds the clocks down any more. The last of ``attempts`` may be invalid.
    """
    attempt = 1
    while True:
        with Watch(meter) as watch:
            found = run()
        conditions = watch.conditions()
        if not conditions.throttling or attempt >= attempts:
            return found, conditions, attempt
        attempt += 1
        why = ", ".join(conditions.throttling)
        say(f"throttled ({why}): the run is invalid, measure again")
        end = time.monotonic() + _COOLING_S
        while set(meter.read().reasons or ()) - set(HARMLESS) and time.monotonic() < end:
            time.sleep(_LOOK_S)
