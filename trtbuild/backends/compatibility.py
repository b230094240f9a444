"""Which version of TensorRT may load an engine that another version built.

The rules of NVIDIA's support matrix (TensorRT 11.4.1): an engine loads in the version that
built it, all four numbers; a version-compatible one also in later versions of its major
version and in all of the next one. 9 was never a version for everybody: after 8 comes 10.
"""

from __future__ import annotations

DRIVERS = {12: 535, 13: 580}
"""The first driver for a major version of CUDA (TensorRT's wheels are tested from there on)."""

_NEXT_MAJOR = {8: 10, 10: 11}


def refusal(built_with: str, here: str, *, version_compatible: bool) -> str:
    """Return why version ``here`` must not load an engine, with the remedy, or nothing."""
    if built_with == here:
        return ""
    if not version_compatible:
        return (
            f"it loads only in {built_with}, which built it, here is {here}: install "
            f"{built_with}, or build it again with {here} (or version-compatible)"
        )
    built, found = _numbers(built_with), _numbers(here)
    if found[:1] == built[:1]:
        if found >= built:
            return ""
        return (
            f"it is version-compatible from {built_with} on, here is {here}: install "
            f"{built_with} or later"
        )
    following = _NEXT_MAJOR.get(built[0])
    if following is not None and found[:1] == (following,):
        return ""
    until = f" and {following}" if following else ""
    return (
        f"it is version-compatible with TensorRT {built[0]}{until}, here is {here}: install "
        f"one of these, or build it again"
    )


def driver_refusal(library: str, cuda_major: int, driver: tuple[int, int]) -> str:
    """Return why a driver cannot run ``library``, built for a major version of CUDA.

    ``driver`` is the CUDA version that the driver supports. A driver runs what was built for
    its major version or an earlier one (CUDA compatibility guide).
    """
    if driver[0] >= cuda_major:
        return ""
    lowest = DRIVERS.get(cuda_major, "")
    return (
        f"{library} is built for CUDA {cuda_major}, the driver supports CUDA {driver[0]}."
        f"{driver[1]} at most: install driver{f' r{lowest}' if lowest else ''} or newer, or "
        f"the build of {library} for CUDA {driver[0]}"
    )


def memory_refusal(what: str, needed: int, free: int) -> str:
    """Return why ``needed`` bytes do not fit in ``free`` bytes of device memory, or nothing."""
    if needed <= free:
        return ""
    return (
        f"{what} needs {needed / 2**20:.0f} MiB of device memory, {free / 2**20:.0f} MiB are "
        "free: end other processes on this GPU, load fewer engines or contexts, or use a GPU "
        "with more memory"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:4] if part.isdigit())
