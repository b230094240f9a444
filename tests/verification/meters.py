"""A device whose instruments show what a test says: the other side of the meter's protocol."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from trtbuild.backends.meter import Reading

if TYPE_CHECKING:
    from collections.abc import Iterable


def reading(*reasons: str, sm_mhz: int | None = 1500) -> Reading:
    return Reading(
        sm_mhz=sm_mhz, memory_mhz=5001, temperature_c=61, power_mw=70_000, reasons=reasons
    )


class ScriptedMeter:
    """Shows ``readings`` in order, the last for ever; uses ``watts``, and counts whole mJ."""

    device = "NVIDIA Test"

    def __init__(
        self,
        readings: Iterable[Reading],
        watts: float | None = None,
        absent: dict[str, str] | None = None,
    ) -> None:
        found = list(readings)
        self._readings = itertools.chain(found, itertools.repeat(found[-1]))
        self._watts = watts
        self.absent = absent or {}

    def read(self) -> Reading:
        return next(self._readings)

    def energy_mj(self) -> int | None:
        return None if self._watts is None else int(time.perf_counter() * 1000 * self._watts)
