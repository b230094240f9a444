"""The builder settings of TensorRT, by our names: their names there, and their defaults.

Tables only, for both flavors and every version; what a version lacks is found out when a
setting is applied (:mod:`trtbuild.backends.trt_config`). A test reads ``IBuilderConfig`` and
``BuilderFlag`` by reflection: every name is in one of the tables here, or it fails.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trtbuild.engine import Setting

PINNED = "pinned:"
"""How a ``timing_cache`` begins whose digest follows: it is in the key, and never written."""

OPTIONS: Mapping[str, Setting] = {
    "avg_timing_iterations": 1,
    "build_repeats": 1,
    "build_route": "",
    "direct_io": False,
    "distributive_independence": False,
    "dla_core": -1,
    "dla_global_dram_mib": 0,
    "dla_local_dram_mib": 0,
    "dla_managed_sram_kib": 0,
    "exclude_lean_runtime": False,
    "gpu_fallback": False,
    "hardware_compatible": "none",
    "l2_limit_kib": 0,
    "max_aux_streams": -1,
    "max_num_tactics": -1,
    "optimization_level": 3,
    "plugins": "",
    "refit": False,
    "refit_identical": False,
    "refit_individual": "",
    "runtime_platform": "same_as_build",
    "sparse_weights": False,
    "strict_nans": False,
    "strip_plan": False,
    "tiling_optimization_level": "none",
    "timing_cache": "auto",
    "version_compatible": False,
    "weight_streaming": False,
    "workspace_mib": 4096,
}
"""Every setting, with its default. 3 is TensorRT's own optimization level. Its own workspace
is the GPU's memory (64 GiB in TensorRT-RTX): an engine could need scratch memory that its
device lacks, and the builder's machine would be an input of the engine. -1, 0 and an empty
string leave a choice to TensorRT. ``plugins`` are libraries, ``refit_individual`` weights by
name, ``build_repeats`` how many engines the fastest is chosen from."""

FLAGS: Mapping[str, str] = {
    "version_compatible": "VERSION_COMPATIBLE",
    "direct_io": "DIRECT_IO",
    "distributive_independence": "DISTRIBUTIVE_INDEPENDENCE",
    "exclude_lean_runtime": "EXCLUDE_LEAN_RUNTIME",
    "gpu_fallback": "GPU_FALLBACK",
    "refit": "REFIT",
    "refit_identical": "REFIT_IDENTICAL",
    "sparse_weights": "SPARSE_WEIGHTS",
    "strict_nans": "STRICT_NANS",
    "strip_plan": "STRIP_PLAN",
    "weight_streaming": "WEIGHT_STREAMING",
}
"""Members of ``BuilderFlag`` by our setting, in the order in which they are applied: a lean
runtime can only be left out of an engine that is version-compatible already."""

OTHER_FLAGS: Mapping[str, str] = {
    "TF32": "always off: fp32 means fp32",
    "REFIT_INDIVIDUAL": "set with refit_individual, whose weights are marked",
    "ERROR_ON_TIMING_CACHE_MISS": "set where timing_cache is pinned",
    "DISABLE_TIMING_CACHE": "set where timing_cache is off",
    "EDITABLE_TIMING_CACHE": "never set: the cache is used, not edited",
    "FP16": "set for 8.6 where the graph has FP16",
    "INT8": "set for 8.6 where the graph has Q/DQ",
    "OBEY_PRECISION_CONSTRAINTS": "set for 8.6: types come from the graph",
    "PREFER_PRECISION_CONSTRAINTS": "never set: constraints are obeyed",
    "STRICT_TYPES": "never set: the deprecated name of the two above",
    "BF16": "never set: where it exists networks are strongly typed",
    "FP8": "never set: where it works networks are strongly typed",
    "INT4": "never set: where it exists networks are strongly typed",
    "FP4": "never set: where it exists networks are strongly typed",
    "DEBUG": "never set: it synchronizes after every layer",
    "SAFETY_SCOPE": "never set: it is for the safety runtime, which we do not have",
    "ENABLE_TACTIC_HEURISTIC": "never set: superseded by optimization_level",
    "REJECT_EMPTY_ALGORITHMS": "never set: it is for algorithm selectors",
    "DISABLE_COMPILATION_CACHE": "never set: it saves time and changes no engine",
    "MONITOR_MEMORY": "never set: it measures, and changes no engine",
    "REQUIRE_USER_ALLOCATION": "never set: the runtime lets TensorRT allocate",
    "WEIGHTLESS": "never set: the old name of STRIP_PLAN",
}
"""The flags that no setting of a user names: who sets them, or why nobody does."""

NUMBERS: Mapping[str, tuple[str, int]] = {
    "optimization_level": ("builder_optimization_level", 1),
    "avg_timing_iterations": ("avg_timing_iterations", 1),
    "max_aux_streams": ("max_aux_streams", 1),
    "max_num_tactics": ("max_num_tactics", 1),
    "l2_limit_kib": ("l2_limit_for_tiling", 1024),
}
"""Properties of ``IBuilderConfig`` by our setting, and how many of their units are one of
ours."""

POOLS: Mapping[str, tuple[str, int]] = {
    "workspace_mib": ("WORKSPACE", 1 << 20),
    "dla_global_dram_mib": ("DLA_GLOBAL_DRAM", 1 << 20),
    "dla_local_dram_mib": ("DLA_LOCAL_DRAM", 1 << 20),
    "dla_managed_sram_kib": ("DLA_MANAGED_SRAM", 1 << 10),
}
"""Members of ``MemoryPoolType`` by our setting, and how many bytes are one of its units. Those
of DLA are powers of 2."""

TEXTS: Mapping[str, str] = {"build_route": "build_route"}

WORDS: Mapping[str, tuple[str, str]] = {
    "hardware_compatible": ("hardware_compatibility_level", "HardwareCompatibilityLevel"),
    "tiling_optimization_level": ("tiling_optimization_level", "TilingOptimizationLevel"),
    "runtime_platform": ("runtime_platform", "RuntimePlatform"),
}
"""Properties that are a member of an enumeration, which our setting names in lower case."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "hardware_compatible": ("none", "ampere_plus", "same_compute_capability"),
    "tiling_optimization_level": ("none", "fast", "moderate", "full"),
    "runtime_platform": ("same_as_build", "windows_amd64"),
}

_INT32 = (1 << 31) - 1
_INT64 = (1 << 63) - 1
_RANGES: Mapping[str, tuple[int, int]] = {
    "avg_timing_iterations": (1, _INT32),
    "build_repeats": (1, _INT32),
    "dla_core": (-1, _INT32),
    "dla_global_dram_mib": (0, _INT64 >> 20),
    "dla_local_dram_mib": (0, _INT64 >> 20),
    "dla_managed_sram_kib": (0, _INT64 >> 10),
    "l2_limit_kib": (0, _INT64 >> 10),
    "max_aux_streams": (-1, _INT32),
    "max_num_tactics": (-1, _INT32),
    "optimization_level": (0, 5),
    "workspace_mib": (1, _INT64 >> 20),
}
"""The least and the most of each number. TensorRT takes another value without a word where it
has fewer (level 99 becomes 5), and the bindings hold 32 or 64 bits. -1 leaves a number to
TensorRT, less is nothing; a workspace of 0 has no tactic."""

OTHER_MEMBERS: Mapping[str, str] = {
    **dict.fromkeys(
        ("set_flag", "clear_flag", "get_flag", "flags"), "the flags, each in its own table"
    ),
    **dict.fromkeys(
        ("set_memory_pool_limit", "get_memory_pool_limit"),
        "workspace_mib and those of DLA; shared memory is the hardware's own",
    ),
    **dict.fromkeys(
        ("num_compute_capabilities", "set_compute_capability", "get_compute_capability"),
        "the target's architecture",
    ),
    **dict.fromkeys(
        ("DLA_core", "default_device_type"), "dla_core: the core, and layers on DLA first"
    ),
    **dict.fromkeys(
        ("create_timing_cache", "set_timing_cache", "get_timing_cache"), "timing_cache"
    ),
    **dict.fromkeys(
        ("add_optimization_profile", "num_optimization_profiles"), "the profiles of the key"
    ),
    **dict.fromkeys(
        ("set_tactic_sources", "get_tactic_sources", "engine_capability"),
        "the version's own default, and the version is in the key",
    ),
    **dict.fromkeys(
        ("set_preview_feature", "get_preview_feature"),
        "8.6 is told to share profiles, as all newer versions do; the version is in the key",
    ),
    "remote_auto_tuning_config": "the version's own default, and the version is in the key",
    **dict.fromkeys(
        ("set_device_type", "get_device_type", "is_device_type_set", "reset_device_type"),
        "no layer is placed by hand: dla_core places all",
    ),
    **dict.fromkeys(
        (
            "int8_calibrator",
            "set_calibration_profile",
            "get_calibration_profile",
            "algorithm_selector",
            "quantization_flags",
            "set_quantization_flag",
            "clear_quantization_flag",
            "get_quantization_flag",
        ),
        "ranges are in the graph as Q/DQ: TensorRT never calibrates",
    ),
    "profiling_verbosity": "always DETAILED: layers are read from the engine",
    "all_build_routes": "read only: what build_route can be",
    "plugins_to_serialize": "never: an engine that brings libraries runs their code at load",
    "profile_stream": "where tactics are timed, changes no engine",
    "progress_monitor": "tells and stops, changes no engine",
    "can_run_on_DLA": "a question",
    "max_workspace_size": "the old name of the workspace's pool",
    "min_timing_iterations": "the old form of avg_timing_iterations",
    "reset": "configurations are used once",
}
"""The members of ``IBuilderConfig`` that no table above names, and why that is enough."""


def problem(settings: Mapping[str, Setting]) -> str:
    """Return why settings, of which some may be missing, do not fit, or an empty string."""
    values = {**OPTIONS, **settings}
    found = [
        f"{name} = {values[name]!r}: expected one of {', '.join(known)}"
        for name, known in CHOICES.items()
        if values[name] not in known
    ]
    found += [
        f"{name} = {values[name]}: expected a number from {least} to {most}"
        for name, (least, most) in _RANGES.items()
        if not least <= int(values[name]) <= most
    ]
    refits = [n for n in ("refit", "refit_identical", "refit_individual") if values[n]]
    if len(refits) > 1:
        found.append(f"{' and '.join(refits)} exclude each other: leave one")
    if values["strip_plan"] and not refits:
        found.append("strip_plan takes out weights that only a refit puts back: set refit too")
    if int(values["build_repeats"]) > 1:
        found += _unrepeatable(values)
    if values["exclude_lean_runtime"] and not values["version_compatible"]:
        found.append("exclude_lean_runtime needs version_compatible: set it too")
    on_dla = ("gpu_fallback", *(name for name in POOLS if name.startswith("dla_")))
    found += [
        f"{name} is for engines on DLA: set dla_core too"
        for name in on_dla
        if values[name] and int(values["dla_core"]) < 0
    ]
    found += [
        f"{name} = {values[name]}: expected a power of 2, or 0 for TensorRT's own"
        for name in on_dla[1:]
        if int(values[name]) & (int(values[name]) - 1) and int(values[name]) > 0
    ]
    return "; ".join(found)


def _unrepeatable(values: Mapping[str, Setting]) -> list[str]:
    """Return why several engines of these settings cannot be built and compared."""
    found = []
    if values["strip_plan"]:
        found.append("strip_plan leaves engines that build_repeats cannot measure: leave one")
    if values["runtime_platform"] != OPTIONS["runtime_platform"]:
        found.append(
            "runtime_platform makes engines that build_repeats cannot measure here: leave one"
        )
    if str(values["timing_cache"]).startswith("pinned"):
        found.append(
            "build_repeats times kernels anew for each engine, a pinned timing_cache forbids "
            "that: leave one"
        )
    return found


def brings_code(settings: Mapping[str, Setting]) -> bool:
    """Return whether an engine of these settings holds code for the processor: a runtime."""
    compatible = bool(settings.get("version_compatible"))
    return compatible and not settings.get("exclude_lean_runtime")


def libraries(plugins: str, folder: Path) -> tuple[Path, ...]:
    """Return the files of the setting ``plugins``; relative ones start from ``folder``."""
    return tuple(folder / word for word in plugins.split(os.pathsep) if word)


def digests(files: tuple[Path, ...]) -> str:
    """Return what stands in a key for the libraries in ``files``: their digests, in order.

    Raises:
        OSError: one cannot be read.
    """
    return ",".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
