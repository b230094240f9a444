"""The processor of this machine, as the architecture word of a target."""

from __future__ import annotations

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

_X86_LEVELS = ("avx512_vnni", "avx_vnni", "avx512f", "avx2")
_ARM_LEVELS = {"i8mm": "i8mm", "asimddp": "dotprod"}


def os_name() -> str:
    """Return this machine's operating system as targets spell it, ``linux-x86_64``."""
    return f"{platform.system().lower()}-{platform.machine()}"


def arch() -> str:
    """Return the instruction set that decides which kernels run, ``x86_64-avx512_vnni``.

    Without ``/proc/cpuinfo`` it is the machine's name alone.
    """
    text = _CPUINFO.read_text(errors="replace") if _CPUINFO.exists() else ""
    return word(platform.machine(), flags(text))


def flags(cpuinfo: str) -> frozenset[str]:
    """Return the feature flags of the first processor in the text of ``/proc/cpuinfo``."""
    for line in cpuinfo.splitlines():
        name, _, values = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(values.split())
    return frozenset()


def word(machine: str, features: frozenset[str]) -> str:
    """Return the architecture word of a ``machine`` with these feature flags."""
    if machine == "x86_64":
        levels = {name: name for name in _X86_LEVELS}
    elif machine == "aarch64":
        levels = _ARM_LEVELS
    else:
        return machine
    best = next((level for flag, level in levels.items() if flag in features), "")
    return f"{machine}-{best}" if best else machine


def saturates(arch_word: str) -> bool:
    """Return whether 8-bit products of this processor saturate in 16 bits.

    x86 without VNNI adds two products of uint8 and int8 into int16 (``vpmaddubsw``), which
    overflows with 8-bit weights (ONNX Runtime, "Quantize ONNX models", section on
    reduce_range).
    """
    return arch_word.startswith("x86_64") and not arch_word.endswith("vnni")
