"""What is wrong with the builder options of a recipe, told before anything is looked for.

A misspelled name, a value of another type, a number that no version of a library takes and a
file that does not exist are errors of the recipe on every machine, with a GPU or without.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from trtbuild.backends import NAMES, backend, trt_settings
from trtbuild.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from trtbuild.engine import Setting

_FLAGS = {
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            "hardware_compatible",
            "optimization_level",
            "timing_cache",
            "version_compatible",
            "workspace_mib",
        )
    },
    "plugins": "--plugin",
}
"""The options that have an argument of their own; the others are given by --build-option."""

_KINDS = {bool: "true or false", int: "a whole number", str: "a text"}
_PINNED = "pinned:"


def check_options(options: Mapping[str, Setting], names: Iterable[str], folder: Path) -> None:
    """Refuse options that no backend of ``names`` honors, or that have a value which is wrong.

    Relative files start from ``folder``.

    Raises:
        RecipeError: the message names the option, and what it can be.
    """
    asked = sorted(names)
    for option, value in options.items():
        honoring = [name for name in asked if option in backend(name).OPTIONS]
        if not honoring:
            raise RecipeError(_not_honored(option, asked))
        kind = type(backend(honoring[0]).OPTIONS[option])
        if type(value) is not kind:
            raise RecipeError(f"{_place(option)}: expected {_KINDS[kind]}, got {value!r}")
    for name in asked:
        known = {k: v for k, v in options.items() if k in backend(name).OPTIONS}
        reason = backend(name).cannot_set(known) or _lacks_file(known, folder)
        if reason:
            raise RecipeError(f"[build.options] {reason}")


def _place(option: str) -> str:
    flag = _FLAGS.get(option)
    return f"[build.options] {option}" + (f" ({flag})" if flag else "")


def _not_honored(option: str, asked: list[str]) -> str:
    """Return who honors an option that the backends in ``asked`` do not, or what was meant."""
    told = f"{_place(option)}: no backend of the targets ({', '.join(asked)}) honors it"
    why = [
        f"{name}: {backend(name).REFUSED[option]}"
        for name in asked
        if option in backend(name).REFUSED
    ]
    others = [name for name in NAMES if option in backend(name).OPTIONS]
    if others:
        elsewhere = " or ".join(f"--backend {name}" for name in others)
        return ". ".join([told, *why, f"Leave it out, or build with {elsewhere}, which does"])
    known = sorted({known for name in asked for known in backend(name).OPTIONS})
    meant = difflib.get_close_matches(option, known, n=1)
    guess = f". Did you mean {meant[0]!r}?" if meant else "."
    return f"{told}, nor any other{guess} They honor: {', '.join(known) or 'none'}"


def _lacks_file(settings: Mapping[str, Setting], folder: Path) -> str:
    """Return which file of ``settings`` does not exist, or an empty string."""
    for path in trt_settings.libraries(str(settings.get("plugins", "")), folder):
        if not path.is_file():
            return (
                f"plugins (--plugin): {path} is no file: name a shared library (.so) with "
                "TensorRT plug-ins"
            )
    timing = str(settings.get("timing_cache", ""))
    if timing in ("", "auto", "off", "pinned"):
        return ""
    if timing.startswith(_PINNED):
        pinned = folder / timing.removeprefix(_PINNED)
        reason = f"{pinned} is no file: name one that a build with --timing-cache FILE wrote"
        found = pinned.is_file()
    else:
        parent = (folder / timing).parent
        reason = f"{parent} is no folder: make it first"
        found = parent.is_dir()
    return "" if found else f"timing_cache (--timing-cache): {reason}"
