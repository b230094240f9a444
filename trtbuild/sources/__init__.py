"""The frameworks: one module each, looked up by name here and imported only when asked for.

This door is light: it holds the request that every exporter takes and the table of modules.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from trtbuild.errors import MissingBackendError, UsageError

if TYPE_CHECKING:
    from trtbuild.backends import Session
    from trtbuild.batches import Batch
    from trtbuild.engine import ShapeRange
    from trtbuild.graph import Graph


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What an exporter is asked for.

    ``location`` is what the recipe says (``file.py:factory``, a file), relative to ``folder``.
    ``example`` is a batch of real inputs, or ``None`` where there is none; other names than the
    model's inputs are ignored. ``profiles`` says which axes vary: those whose ``min`` and
    ``max`` differ; an input without a profile has a dynamic axis 0 where its framework lets
    it choose. ``out`` is the ONNX file to write; its folder exists.
    """

    location: str
    folder: Path
    example: Batch | None
    profiles: tuple[ShapeRange, ...]
    out: Path


class SourceModule(Protocol):
    """What the module of a framework offers."""

    def export(self, request: ExportRequest) -> Graph:
        """Return the model as an ONNX graph, whose names and axes are those of the model.

        Raises:
            SourceError: the model cannot be read.
            RecipeError: a profile does not fit the model's inputs.
            ExportError: the framework cannot export it as asked.
        """

    def reference(self, location: str, folder: Path) -> Session:
        """Return a session in which the framework itself computes; raises as :meth:`export`."""


_MODULES = {
    "onnx": "trtbuild.sources.onnx_file",
    "torch": "trtbuild.sources.torch_module",
    "pt2": "trtbuild.sources.torch_pt2",
}

_EXTRAS = {"onnx": "trtbuild", "torch": "trtbuild[torch]", "pt2": "trtbuild[torch]"}

FRAMEWORKS = tuple(_MODULES)


def source(framework: str) -> SourceModule:
    """Import and return the module of ``framework``, a field of the ``[source]`` table.

    Raises:
        UsageError: no framework has this name.
        MissingBackendError: it is not installed; the message has the install line.
    """
    if framework not in _MODULES:
        raise UsageError(
            f"no framework is called {framework!r}: expected one of {', '.join(FRAMEWORKS)}"
        )
    try:
        return cast("SourceModule", importlib.import_module(_MODULES[framework]))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("trtbuild"):
            raise
        raise MissingBackendError(
            f"a {framework!r} source needs the Python package {error.name!r}, not installed "
            f"here: pip install '{_EXTRAS[framework]}'"
        ) from error


def absolute(location: str, folder: Path) -> Path:
    """Return the path of a file that a recipe names: relative ones start from ``folder``."""
    return folder / Path(location).expanduser()


__all__ = ["FRAMEWORKS", "ExportRequest", "SourceModule", "absolute", "source"]
