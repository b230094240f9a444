"""NVML without a GPU: with no library, and with one of ours that answers as drivers do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pynvml
import pytest

from trtbuild.backends import nvml
from trtbuild.backends.meter import FIGURES, HARMLESS, open_meter
from trtbuild.engine import Target

if TYPE_CHECKING:
    from pathlib import Path

# The functions of NVML that the meter calls, in its documented C signatures; 3 is "not
# supported", 0 success. What is left out is missing in the library, as in an old driver's.
_LIBRARY = """
#include <string.h>
static unsigned long long energy = 5000000;
int nvmlInitWithFlags(unsigned f) { return 0; }
int nvmlShutdown(void) { return 0; }
char *nvmlErrorString(int code) { return "Not Supported"; }
int nvmlDeviceGetHandleByPciBusId_v2(char *id, void **d)
{ *d = (void *)1; return strcmp(id, "0000:01:00.0") ? 6 : 0; }
int nvmlDeviceGetName(void *d, char *name, unsigned n)
{ strncpy(name, "Stub GPU", n); return 0; }
int nvmlDeviceGetClockInfo(void *d, int type, unsigned *mhz)
{ *mhz = type == 1 ? 1410 : 5001; return 0; }
int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *c) { *c = 64; return 0; }
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) { *mw = 70000; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *d, unsigned long long *mj)
{ *mj = energy += 250; return ENERGY; }
int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *next)
{ *now = *next = MIG; return 0; }
int nvmlDeviceGetCurrentClocks REASONS(void *d, unsigned long long *mask)
{ *mask = 4 | 2 | 0x800; return 0; }
"""

_ASK = """
import json
from msgspec import to_builtins
from trtbuild.backends import nvml
with nvml.opened("{bus}") as meter:
    energy = meter.energy_mj(), meter.energy_mj()
    reading = to_builtins(meter.read())
    print(json.dumps([meter.device, reading, energy, dict(meter.absent)]))
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    return tmp_path / "libnvidia-ml.so.1"


def ask(
    library: Path,
    *,
    energy: int = 0,
    mig: int = 0,
    name: str = "EventReasons",
    bus: str = "0000:01:00.0",
) -> Any:  # noqa: ANN401  decoded JSON
    text = _LIBRARY.replace("MIG", str(mig)).replace("ENERGY", str(energy))
    source = library.with_name("nvml.c")
    source.write_text(text.replace(" REASONS", name))
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", library, source], check=True)
    child = subprocess.run(
        [sys.executable, "-c", _ASK.format(bus=bus)],
        env={**os.environ, "LD_LIBRARY_PATH": str(library.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(child.stdout)


@pytest.mark.parametrize("name", ["EventReasons", "ThrottleReasons"])
def test_a_gpu_tells_clocks_reasons_and_energy_by_its_old_and_new_names(
    name: str, library: Path
) -> None:
    device, reading, energy, absent = ask(library, name=name)
    assert device == "Stub GPU"
    assert reading == {
        "sm_mhz": 1410,
        "memory_mhz": 5001,
        "temperature_c": 64,
        "power_mw": 70000,
        "reasons": ["locked clocks", "power cap", "reason 0x800"],
    }
    assert energy[1] - energy[0] == 250
    assert absent == {}


def test_a_gpu_without_an_energy_counter_has_none_and_not_0(library: Path) -> None:
    _, reading, energy, absent = ask(library, energy=3)
    assert energy == [None, None]
    assert set(absent) == {"energy_mj"}
    assert "Not Supported" in absent["energy_mj"]
    assert reading["sm_mhz"] == 1410


def test_energy_of_a_gpu_cut_into_instances_is_not_one_instances(library: Path) -> None:
    _, reading, energy, absent = ask(library, mig=1)
    assert energy == [None, None]
    assert reading["power_mw"] is None
    assert "MIG" in absent["energy_mj"]


def test_a_driver_without_clock_reasons_leaves_them_unknown(library: Path) -> None:
    _, reading, _, absent = ask(library, name="Nothing")
    assert reading["reasons"] is None
    assert "reasons" in absent


def test_a_gpu_that_nvml_does_not_know_has_no_figures(library: Path) -> None:
    device, reading, _, absent = ask(library, bus="0000:99:00.0")
    assert device == ""
    assert set(reading.values()) == {None}
    assert set(absent) == set(FIGURES)


def test_without_a_driver_every_figure_is_missing_with_the_reason() -> None:
    code = _ASK.format(bus="0000:01:00.0")
    child = subprocess.run(
        [sys.executable, "-c", f"import ctypes, pynvml\n{code}"],
        env={**os.environ, "LD_LIBRARY_PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    device, reading, energy, absent = json.loads(child.stdout)
    if device:
        pytest.skip("this machine has a driver")
    assert set(reading.values()) == {None}
    assert energy == [None, None]
    assert "NVML" in absent["energy_mj"]


def test_every_reason_of_the_bindings_has_a_word_and_most_are_throttling() -> None:
    words = nvml.reasons(pynvml.nvmlClocksEventReasonAll)
    assert not [word for word in words if word.startswith("reason 0x")]
    assert len(words) == 9
    assert set(HARMLESS) < set(words)


def test_engines_for_the_processor_have_no_meter_and_the_reason_is_said() -> None:
    target = Target(backend="onnxruntime", arch="x86_64-avx2", os="linux-x86_64")
    with open_meter((target,)) as meter:
        assert "processor" in meter.absent["energy_mj"]
        assert meter.device == ""
