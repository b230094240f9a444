"""From the arguments of a command to a recipe."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

import msgspec

from trtbuild.engine import Value
from trtbuild.errors import RecipeError, UsageError
from trtbuild.recipe import (
    PRECISIONS,
    RESTS,
    UNSUPPORTED_PRECISIONS,
    BlockSize,
    Build,
    Gates,
    Method,
    Profile,
    Quantization,
    Recipe,
    Source,
    Technique,
    load_recipe,
)

if TYPE_CHECKING:
    from trtbuild.engine import Precision, Setting
    from trtbuild.recipe import RestWord

_METHODS = ("auto", "minmax", "percentile", "entropy", "mse")
_TECHNIQUES = get_args(Technique)
_SPARSITIES = ("2:4",)
_BACKENDS = ("auto", "onnxruntime", "tensorrt", "tensorrt-rtx")


class Arguments(Value, frozen=True, kw_only=True):
    """What a command was given; where it is ``None`` or empty the recipe decides."""

    precision: str | None = None
    backend: str | None = None
    arch: tuple[str, ...] = ()
    calibration: str | None = None
    evaluation: str | None = None
    method: str | None = None
    technique: tuple[str, ...] = ()
    shape: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    trt_cache: str | None = None
    sparsity: str | None = None
    keep_dense: tuple[str, ...] = ()
    policy: str | None = None
    rest: str | None = None
    block_size: int | None = None
    max_drop: float | None = None
    min_speedup: float | None = None
    optimization_level: int | None = None
    workspace_mib: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    plugin: tuple[str, ...] = ()
    timing_cache: str | None = None
    build_option: tuple[str, ...] = ()
    calib_memory_mib: int | None = None


def recipe_of(source: str, arguments: Arguments) -> Recipe:
    """Return the recipe that ``source`` names or describes, with the arguments laid over it.

    Paths in arguments start from the current folder, those in a recipe file from its own.

    Raises:
        UsageError: an argument is wrong.
        RecipeError: the recipe is wrong.
    """
    recipe = load_recipe(Path(source)) if source.endswith(".toml") else _described(source)
    quantization = _quantization(recipe.quantization, arguments)
    changes = {
        "targets": _targets(arguments) or recipe.build.targets,
        "profiles": {**recipe.build.profiles, **_profiles(arguments.shape)},
        "options": {**recipe.build.options, **_options(arguments)},
    }
    try:
        build = msgspec.convert({**msgspec.to_builtins(recipe.build), **changes}, Build)
    except msgspec.ValidationError as error:
        raise UsageError(f"--shape: {error}") from error
    gates = _gates(recipe.gates, arguments)
    memory_mib = _first(arguments.calib_memory_mib, recipe.limits.calib_memory_mib)
    return msgspec.structs.replace(
        recipe,
        quantization=quantization,
        build=build,
        gates=gates,
        limits=msgspec.structs.replace(recipe.limits, calib_memory_mib=memory_mib),
    )


def is_strict(arguments: Arguments) -> bool:
    """Tell whether the command line names targets, which then must be buildable here."""
    return bool(_targets(arguments))


def _described(source: str) -> Recipe:
    path = Path(source)
    if source.endswith(".onnx"):
        found = Source(onnx=source)
    elif source.endswith(".pt2"):
        found = Source(pt2=source)
    elif ":" in source:
        found = Source(torch=source)
        path = Path(source.rpartition(":")[0])
    else:
        raise UsageError(
            f"{source!r} is no source: expected a recipe (.toml), an ONNX file (.onnx), an "
            f"exported PyTorch program (.pt2), file.py:factory or package.module:factory"
        )
    return Recipe(name=path.stem, folder=Path.cwd(), source=found)


def _quantization(table: Quantization, arguments: Arguments) -> Quantization:
    precision = arguments.precision or table.precision
    if arguments.trt_cache and table == Quantization():
        precision = arguments.precision or "int8"
    if precision in UNSUPPORTED_PRECISIONS:
        raise UsageError(
            f"--precision {precision}: not built by this version; expected one of "
            f"{', '.join(PRECISIONS)}"
        )
    table = table.without_unused(cast("Precision", precision))
    method = arguments.method or table.method
    rest = arguments.rest or table.rest
    block_size = arguments.block_size or table.block_size
    for option, value, known in (
        ("--precision", precision, PRECISIONS),
        ("--method", method, _METHODS),
        ("--rest", rest, RESTS),
        ("--block-size", str(block_size), tuple(map(str, get_args(BlockSize)))),
        ("--sparsity", arguments.sparsity or "2:4", _SPARSITIES),
    ):
        if value not in known:
            raise UsageError(f"{option} {value}: expected one of {', '.join(known)}")
    try:
        return Quantization(
            precision=cast("Precision", precision),
            provider=_path(arguments.calibration) or table.provider,
            evaluation=_path(arguments.evaluation) or table.evaluation,
            method=cast("Method", method),
            techniques=_techniques(arguments.technique, table),
            keep_float=arguments.keep_float or table.keep_float,
            trt_cache=_path(arguments.trt_cache) or table.trt_cache,
            sparsity=cast("Literal['2:4'] | None", arguments.sparsity) or table.sparsity,
            keep_dense=arguments.keep_dense or table.keep_dense,
            policy=_policy(arguments.policy) or table.policy,
            rest=cast("RestWord", rest),
            block_size=cast("BlockSize", block_size),
        )
    except ValueError as error:
        lacking = "needs calibration data" in str(error)
        remedy = ". Use --calibration PROVIDER.py|FILE.npz|FOLDER" if lacking else ""
        raise RecipeError(f"{error}{remedy}") from error


def _techniques(
    words: tuple[str, ...], table: Quantization
) -> Literal["auto"] | tuple[Technique, ...]:
    """Return what ``--technique`` asks for: ``none`` and ``auto`` stand alone."""
    if not words:
        return table.techniques
    if words == ("auto",):
        return "auto"
    if words == ("none",):
        return ()
    for word in words:
        if word not in _TECHNIQUES:
            raise UsageError(
                f"--technique {word}: expected one or more of {', '.join(_TECHNIQUES)}, or "
                f"auto or none alone"
            )
    return cast("tuple[Technique, ...]", tuple(dict.fromkeys(words)))


def _gates(table: Gates, arguments: Arguments) -> Gates:
    limits = {
        "max_drop": _first(arguments.max_drop, table.max_drop),
        "min_speedup": _first(arguments.min_speedup, table.min_speedup),
    }
    try:
        return msgspec.convert(limits, Gates)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        option = "--" + place.rstrip("`").replace("_", "-")
        raise UsageError(f"{option}: {reason}") from error


def _targets(arguments: Arguments) -> tuple[str, ...]:
    name = arguments.backend or "auto"
    if name not in _BACKENDS:
        raise UsageError(f"--backend {name}: expected one of {', '.join(_BACKENDS)}")
    if arguments.arch:
        archs = tuple(_arch(text) for text in arguments.arch)
        return tuple(f"{_backend_for(name, arch)}:{arch}" for arch in archs)
    return () if name == "auto" else (name,)


def _arch(text: str) -> str:
    """Return ``sm_89`` for the ways in which people write it: 8.9, 89, sm89, SM_89."""
    found = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text, re.IGNORECASE)
    return f"sm_{found[1]}{found[2]}" if found else text


def _backend_for(name: str, arch: str) -> str:
    if name != "auto":
        return name
    return "tensorrt-rtx" if arch.startswith("sm_") else "onnxruntime"


def _profiles(texts: tuple[str, ...]) -> dict[str, Profile]:
    profiles: dict[str, Profile] = {}
    for text in texts:
        name, profile = _profile(text)
        if name in profiles:
            raise UsageError(
                f"--shape {text}: input {name!r} has a profile already; an engine has one"
            )
        profiles[name] = profile
    return profiles


def _profile(text: str) -> tuple[str, Profile]:
    """Parse ``images:1x3x224x224,8x3x224x224,32x3x224x224``; one shape stands for all three."""
    name, _, shapes = text.rpartition(":")
    try:
        parsed = [tuple(int(size) for size in part.split("x")) for part in shapes.split(",")]
    except ValueError:
        parsed = []
    if not name or len(parsed) not in (1, 3):
        raise UsageError(
            f"--shape {text}: expected NAME:MIN,OPT,MAX with sizes joined by x, such as "
            f"images:1x3x224x224,8x3x224x224,32x3x224x224"
        )
    low, mid, high = parsed if len(parsed) > 1 else parsed * 3
    return name, Profile(min=low, opt=mid, max=high)


def _options(arguments: Arguments) -> dict[str, Setting]:
    given = {
        "optimization_level": arguments.optimization_level,
        "workspace_mib": arguments.workspace_mib,
        "version_compatible": arguments.version_compatible or None,
        "hardware_compatible": "ampere_plus" if arguments.hardware_compatible else None,
        "plugins": os.pathsep.join(str(Path(text).absolute()) for text in arguments.plugin)
        or None,
        "timing_cache": _timing(arguments.timing_cache),
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    for text in arguments.build_option:
        name, value = _option(text)
        if name in chosen:
            raise UsageError(
                f"--build-option {text}: {name} = {chosen[name]} was given already: leave one"
            )
        chosen[name] = value
    return chosen


def _option(text: str) -> tuple[str, Setting]:
    """Parse ``NAME=VALUE``: true and false are flags, whole numbers are numbers."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UsageError(f"--build-option {text}: expected NAME=VALUE, as in refit=true")
    if value in ("true", "false"):
        return name, value == "true"
    return name, int(value) if re.fullmatch(r"-?[0-9]{1,99}", value) else value


def _timing(text: str | None) -> str | None:
    """Return a timing cache as recipes hold it: a word, or a file from the current folder."""
    word, colon, file = (text or "").partition(":")
    if word == "pinned" and colon:
        return f"pinned:{_path(file)}"
    return text if text in {None, "auto", "off", "pinned"} else _path(text)


def _path(text: str | None) -> str | None:
    """Return an argument's path from the current folder, as recipes hold it."""
    return str(Path(text).absolute()) if text else None


def _policy(text: str | None) -> str | None:
    return text if text in {"auto", "all"} else _path(text)


def _first(value: float | None, default: float | None) -> float | None:
    return default if value is None else value
