"""What a device tells of itself while engines run on it: clocks, throttling, energy.

The latency protocol (:mod:`trtbuild.verification`) reads a :class:`Meter`; which one, is found
here. A figure that a device does not give is ``None``, and the meter says why: never 0.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from trtbuild.backends import fingerprint, gpu
from trtbuild.engine import Value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trtbuild.engine import Target

FIGURES = ("sm_mhz", "memory_mhz", "temperature_c", "power_mw", "reasons", "energy_mj")
"""The names that :attr:`Meter.absent` uses."""


class Reading(Value, frozen=True, kw_only=True):
    """One moment of a device; ``None`` is what it does not tell.

    ``reasons`` say what sets the clocks now (``power cap``, ``thermal slowdown``, or one of
    :data:`HARMLESS`): empty where nothing holds them down.
    """

    sm_mhz: int | None
    memory_mhz: int | None
    temperature_c: int | None
    power_mw: int | None
    reasons: tuple[str, ...] | None


HARMLESS = ("idle", "locked clocks", "display clocks")
"""Reasons that somebody chose, or that a GPU without work has. Any other reason, one that no
driver gives yet included, is throttling: clocks are lower than what was asked for."""


class Meter(Protocol):
    """The instruments of one device."""

    @property
    def device(self) -> str:
        """What is measured, ``NVIDIA L4``; empty where there is no instrument."""

    @property
    def absent(self) -> Mapping[str, str]:
        """Why a figure is missing, by its name in :data:`FIGURES`."""

    def read(self) -> Reading:
        """Return the state of this moment."""

    def energy_mj(self) -> int | None:
        """Return the millijoules that the device has used since some moment in the past."""


class NoMeter:
    """A device without instruments, and why."""

    device = ""

    def __init__(self, reason: str) -> None:
        self.absent: Mapping[str, str] = dict.fromkeys(FIGURES, reason)

    def read(self) -> Reading:
        """Return a reading without figures."""
        return Reading(
            sm_mhz=None, memory_mhz=None, temperature_c=None, power_mw=None, reasons=None
        )

    def energy_mj(self) -> int | None:
        """Return ``None``."""
        return None


@contextlib.contextmanager
def open_meter(targets: tuple[Target, ...]) -> Iterator[Meter]:
    """Lend the instruments of the GPU that engines for ``targets`` run on here.

    Engines of two devices, or for the processor, have no common instrument.
    """
    archs = sorted({target.arch for target in targets})
    buses = gpu.pci_bus_ids()
    indices = {gpu.index_for(target) for target in targets}
    if not any(map(gpu.number, archs)):
        yield NoMeter("the engines run on the processor; NVML tells of GPUs")
    elif len(indices) > 1 or -1 in indices:
        yield NoMeter(f"no single GPU of this machine runs all engines ({', '.join(archs)})")
    elif not fingerprint.has_module("pynvml"):
        yield NoMeter("the package nvidia-ml-py is not installed: pip install nvidia-ml-py")
    else:
        from trtbuild.backends import nvml  # noqa: PLC0415  optional, and needs a driver

        with nvml.opened(buses[indices.pop()]) as meter:
            yield meter
