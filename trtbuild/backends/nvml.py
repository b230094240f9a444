"""NVIDIA's management library: what a GPU is, its clocks, what holds them down, its energy.

Needs the package nvidia-ml-py. ``python -m trtbuild.backends.nvml`` prints the driver and the
GPUs of this machine as JSON, in a process of its own; without a driver it prints nothing and
fails.
"""

from __future__ import annotations

import contextlib
import json
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import pynvml

from trtbuild.backends.meter import FIGURES, NoMeter, Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trtbuild.backends.meter import Meter

T = TypeVar("T")

# NVML API reference, "NvmlClocksEventReasons". Hardware slowdown is the sum of the two below it
# where a driver tells them apart.
_REASONS = {
    pynvml.nvmlClocksEventReasonGpuIdle: "idle",
    pynvml.nvmlClocksEventReasonApplicationsClocksSetting: "locked clocks",
    pynvml.nvmlClocksEventReasonSwPowerCap: "power cap",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksEventReasonSyncBoost: "sync boost",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "thermal slowdown",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "hardware thermal slowdown",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "power brake",
    pynvml.nvmlClocksEventReasonDisplayClockSetting: "display clocks",
}


def describe() -> dict[str, object]:
    """Return the driver's version and name, architecture and memory of each GPU."""
    pynvml.nvmlInit()
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return {
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "gpus": [_gpu(handle) for handle in handles],
        }
    finally:
        pynvml.nvmlShutdown()


def reasons(mask: int) -> tuple[str, ...]:
    """Return the words for the bits of a mask of clock event reasons."""
    known = [word for bit, word in _REASONS.items() if mask & bit]
    rest = mask & ~sum(_REASONS)
    return (*known, *([f"reason {rest:#x}"] if rest else []))


@contextlib.contextmanager
def opened(pci_bus_id: str) -> Iterator[Meter]:
    """Lend the meter of the GPU at a PCI bus address; one without figures where NVML fails.

    The address, unlike an index, is the same in CUDA and in NVML whatever
    CUDA_VISIBLE_DEVICES says.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield NoMeter(f"NVML does not work here: {error}")
        return
    try:
        yield _meter(pci_bus_id)
    finally:
        pynvml.nvmlShutdown()


def _meter(pci_bus_id: str) -> Meter:
    try:
        return _NvmlMeter(pynvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id.encode()))
    except pynvml.NVMLError as error:
        return NoMeter(f"NVML does not know the GPU {pci_bus_id}: {error}")


class _NvmlMeter:
    """One GPU. What it refuses once, when it is opened, is not asked for again."""

    def __init__(self, handle: object) -> None:
        self.device = str(pynvml.nvmlDeviceGetName(handle))
        self._ask: dict[str, Callable[[], int]] = {
            "sm_mhz": partial(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
            "memory_mhz": partial(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
            "temperature_c": partial(
                pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU
            ),
            "power_mw": partial(pynvml.nvmlDeviceGetPowerUsage, handle),
            "reasons": partial(_reason_mask, handle),
            "energy_mj": partial(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle),
        }
        self.absent: dict[str, str] = {}
        if _in_instances(handle):
            whole = "the GPU is cut into instances (MIG): its counters are of all of them"
            self.absent |= dict.fromkeys(("power_mw", "energy_mj"), whole)
        for name in FIGURES:
            self._figure(name)

    def read(self) -> Reading:
        """Return the state of this moment."""
        mask = self._figure("reasons")
        return Reading(
            sm_mhz=self._figure("sm_mhz"),
            memory_mhz=self._figure("memory_mhz"),
            temperature_c=self._figure("temperature_c"),
            power_mw=self._figure("power_mw"),
            reasons=None if mask is None else reasons(mask),
        )

    def energy_mj(self) -> int | None:
        """Return the GPU's energy since the driver was loaded; moves every 20 to 100 ms."""
        return self._figure("energy_mj")

    def _figure(self, name: str) -> int | None:
        if name in self.absent:
            return None
        try:
            return int(self._ask[name]())
        except pynvml.NVMLError as error:
            self.absent[name] = f"{self.device}, NVML: {error}"
            return None


def _reason_mask(handle: object) -> int:
    """Return the mask by its name of today, or by the one of drivers before 535."""
    try:
        return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except pynvml.NVMLError_FunctionNotFound:
        return int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def _in_instances(handle: object) -> bool:
    try:
        mode, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError:  # a GPU or a driver without MIG
        return False
    return bool(mode == pynvml.NVML_DEVICE_MIG_ENABLE)


def _gpu(handle: object) -> dict[str, str | int]:
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return {
        "name": pynvml.nvmlDeviceGetName(handle),
        "arch": f"sm_{major}{minor}",
        "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).total,
    }


if __name__ == "__main__":
    print(json.dumps(describe()))  # noqa: T201  the answer to the parent process
