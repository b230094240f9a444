"""From the targets that a user names to those that this machine can build."""

from __future__ import annotations

import platform
import re
from typing import TYPE_CHECKING

import msgspec

from trtbuild.backends import NAMES, backend, trt_settings
from trtbuild.engine import Fingerprint, Setting, Target, Value
from trtbuild.errors import MissingBackendError, RecipeError, UsageError
from trtbuild.pipeline.build_options import check_options

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.recipe import Recipe


_PROCESSORS = ("x86_64", "aarch64", "arm64", "AMD64", "ppc64le", "riscv64", "s390x")
"""The words for processors that ``platform.machine()`` has: a recipe may name another one."""


_WINDOWS = "windows-AMD64"
"""What Python calls the platform there (``processor.os_name``)."""


class Planned(Value, frozen=True, kw_only=True):
    """One engine to build.

    ``required`` is false for architectures that nobody named: where the model is not for them
    they are skipped. ``cannot_run`` says why the engine cannot run here, empty if it can.
    ``settings`` are all effective builder settings, sorted by name; libraries stand there as
    digests, ``plugins`` are their files. ``timing_file`` is the user's own timing cache.
    """

    target: Target
    required: bool
    cannot_run: str
    settings: tuple[tuple[str, Setting], ...]
    fingerprint: Fingerprint
    plugins: tuple[str, ...] = ()
    timing_file: str = ""


class Skipped(Value, frozen=True, kw_only=True):
    """A target that is not built here, and why."""

    target: str
    reason: str


class Plan(Value, frozen=True, kw_only=True):
    """What a run builds and what it skips."""

    planned: tuple[Planned, ...]
    skipped: tuple[Skipped, ...]


def plan_targets(recipe: Recipe, *, strict: bool) -> Plan:
    """Return the engines to build for ``recipe`` on this machine.

    With ``strict`` (targets that a command line names) a target that cannot be built here is
    an error; otherwise it is skipped with its reason.

    Raises:
        UsageError: a target names no backend, or no architecture.
        RecipeError: a builder option is honored by none of the backends of the recipe, or has a
            value that none takes, or the recipe's precision is computed by one of them nowhere,
            or not by a named architecture.
        MissingBackendError: no target can be built here.
    """
    planned: list[Planned] = []
    skipped: list[Skipped] = []
    lacks: list[Skipped] = []
    wanted = recipe.build.targets or default_targets()
    names = {_split(word)[0] for word in wanted}
    try:
        check_options(recipe.build.options, names, recipe.folder)
    except RecipeError as error:
        raise RecipeError(f"{recipe.name}: {error}") from error
    _check_precision(recipe, names)
    precision = recipe.quantization.precision
    for word in wanted:
        name, arch = _split(word)
        for found in backend(name).targets((arch,) if arch else ()):
            if found.cannot_build:
                skipped.append(Skipped(target=str(found.target), reason=found.cannot_build))
                continue
            lacking = backend(name).cannot_compute(found.target.arch, precision)
            if lacking and arch:
                raise RecipeError(f"{recipe.name}: {found.target}, {precision}: {lacking}")
            if lacking:
                lacks.append(Skipped(target=str(found.target), reason=lacking))
                continue
            required = bool(arch) or name == "onnxruntime"
            planned.append(_planned(recipe, found.target, found.cannot_run, required=required))
    unique = tuple({str(item.target): item for item in planned}.values())
    if skipped and (strict or not (unique or lacks)):
        reasons = "; ".join(f"{item.target}: {item.reason}" for item in skipped)
        raise MissingBackendError(f"cannot be built on this machine: {reasons}")
    if not unique:
        reasons = "; ".join(item.reason for item in lacks)
        raise RecipeError(f"{recipe.name}: {precision} has no target: {reasons}")
    return Plan(planned=unique, skipped=(*skipped, *lacks))


def default_targets() -> tuple[str, ...]:
    """Return TensorRT where it can build, else TensorRT-RTX if installed, else ONNX Runtime."""
    for name in ("tensorrt", "tensorrt-rtx"):
        try:
            found = backend(name).targets(())
        except MissingBackendError:
            continue
        if not all(item.cannot_build for item in found):
            return (name,)
    return ("onnxruntime",)


def _planned(recipe: Recipe, target: Target, cannot_run: str, *, required: bool) -> Planned:
    module = backend(target.backend)
    options = {k: v for k, v in recipe.build.options.items() if k in module.OPTIONS}
    sparse = {"sparse_weights": True} if recipe.quantization.sparsity else {}
    known = {name: value for name, value in sparse.items() if name in module.OPTIONS}
    settings = {**module.OPTIONS, **known, **options}
    plugins = _plugins(recipe, settings)
    timing = str(settings.get("timing_cache", "auto"))
    is_file = timing not in ("auto", "off") and not timing.startswith("pinned")
    if is_file:
        settings["timing_cache"] = "auto"
    if timing.startswith("pinned:"):
        settings["timing_cache"] = f"pinned:{recipe.folder / timing.removeprefix('pinned:')}"
    if settings.get("hardware_compatible", "none") != "none":
        # Such an engine holds no kernels of one GPU model, so that the model is no input of it.
        target = msgspec.structs.replace(target, device="")
    if settings.get("runtime_platform") == "windows_amd64":
        cannot_run = f"it is built for Windows (runtime_platform), this machine is {target.os}"
        target = msgspec.structs.replace(target, os=_WINDOWS)
    return Planned(
        target=target,
        required=required,
        cannot_run=cannot_run,
        settings=tuple(sorted(settings.items())),
        fingerprint=module.fingerprint(target),
        plugins=tuple(map(str, plugins)),
        timing_file=str(recipe.folder / timing) if is_file else "",
    )


def _plugins(recipe: Recipe, settings: dict[str, Setting]) -> tuple[Path, ...]:
    """Return the files of the setting ``plugins``, whose digests take its place."""
    if not settings.get("plugins"):
        return ()
    files = trt_settings.libraries(str(settings["plugins"]), recipe.folder)
    try:
        settings["plugins"] = trt_settings.digests(files)
    except OSError as error:
        raise RecipeError(
            f"{recipe.name}: plugin {error.filename}: {error.strerror}: name a shared library "
            "(.so) with TensorRT plug-ins"
        ) from error
    return files


def _split(word: str) -> tuple[str, str]:
    name, _, arch = word.partition(":")
    if name not in NAMES:
        raise UsageError(
            f"target {word!r}: no backend is called {name!r}; expected one of "
            f"{', '.join(NAMES)}, alone or with an architecture (tensorrt-rtx:sm_89)"
        )
    known = (
        arch.partition("-")[0] in (*_PROCESSORS, platform.machine())
        if name == "onnxruntime"
        else re.fullmatch(r"sm_[0-9]{2,3}", arch)
    )
    if arch and not known:
        raise UsageError(
            f"target {word!r}: {arch!r} is no architecture of {name}; expected that of a GPU, "
            "as sm_89 or 8.9, or for onnxruntime that of a processor, as x86_64-avx512_vnni"
        )
    return name, arch


def _check_precision(recipe: Recipe, names: set[str]) -> None:
    precision = recipe.quantization.precision
    for name in sorted(names):
        known = backend(name).PRECISIONS
        if precision not in known:
            raise RecipeError(
                f"{recipe.name}: {name} computes nothing in {precision}: ask for "
                f"{', '.join(known)}, or for another backend"
            )
