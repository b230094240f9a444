"""Where the code and data that a program uses come from: itself, installed packages, Python.

Files of installed packages are stood for by the version of their distribution, since they
number thousands and change only with it.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import os
import site
import sys
import sysconfig
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

_OURS = str(Path(__file__).resolve().parents[1])
"""trtbuild's own files: keys hold its version."""

_LAUNCHERS = os.path.join(sys.prefix, "bin")  # noqa: PTH118  paths here are text
"""The commands of this environment, of which one started this process."""

_SYSTEM = ("/proc", "/sys", "/dev")
_MEMORY = "/dev/shm"  # noqa: S108  named, not written to
"""A file system for everybody's files that Linux keeps among the devices."""

_METADATA_SUFFIXES = (".dist-info", ".egg-info", ".pth")


def is_system_file(path: str) -> bool:
    """Tell whether a file is Python's, the system's, trtbuild's or only a cache of another."""
    if _below(path, (_MEMORY,)):
        return False
    if path.endswith((".pyc", ".pyo")) or _below(path, (_OURS, _LAUNCHERS, *_SYSTEM)):
        return True
    return installed_top(path) is None and _below(path, _standard_folders())


def is_local_file(path: object) -> bool:
    """Tell whether ``path`` is a file of the user's own, neither installed nor the system's."""
    if not isinstance(path, str):
        return False
    return installed_top(path) is None and not is_system_file(path)


def installed_top(path: str) -> str | None:
    """Return the first name of ``path`` below ``site-packages``; ``None`` outside of it."""
    for folder in _site_folders():
        if _below(path, (folder,)):
            return PurePath(os.path.relpath(path, folder)).parts[0]
    return None


def is_metadata(top: str) -> bool:
    """Tell whether a name in ``site-packages`` is pip's book-keeping."""
    return top.endswith(_METADATA_SUFFIXES) or top.startswith("__editable__")


def distributions_of(top: str) -> tuple[str, ...]:
    """Return the distributions that install the top-level package or file ``top``."""
    return _distributions().get(top, ())


def local_closure(modules: Iterable[ModuleType]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the source files and the distributions that ``modules`` use, transitively.

    Imports are read from the source of each module that is not installed; those of them that
    were really imported count. What an installed package imports is its own affair.
    """
    files: dict[str, None] = {}
    tops: dict[str, None] = {}
    queue = list(modules)
    while queue:
        module = queue.pop()
        path = getattr(module, "__file__", None)
        if not isinstance(path, str) or os.path.abspath(path) in files:  # noqa: PTH100  a key
            continue
        path = os.path.abspath(path)  # noqa: PTH100  links are kept: the name is what was read
        top = installed_top(path)
        if top is not None:
            tops[top] = None
        elif not is_system_file(path):
            files[path] = None
            queue.extend(_imported(module, path))
    return tuple(files), tuple(tops)


def _imported(module: ModuleType, path: str) -> Iterator[ModuleType]:
    """Yield the loaded modules that the source of ``module`` names in import statements."""
    if not path.endswith(".py"):
        return
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError):  # gone or rewritten since it was imported
        return
    package = module.__package__ or ""
    for node in ast.walk(tree):
        for name in _names(node, package):
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                found = sys.modules.get(".".join(parts[:end]))
                if found is not None:
                    yield found


def _names(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        if node.level:
            try:
                base = importlib.util.resolve_name(base, package)
            except ImportError:
                return
        yield from (f"{base}.{alias.name}" for alias in node.names)


def _below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)


@functools.cache
def _site_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = [paths["purelib"], paths["platlib"], *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return tuple(dict.fromkeys(folders))


@functools.cache
def _standard_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    zipped = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    zips = (path for path in sys.path if path.endswith(f"{os.sep}{zipped}"))
    return (paths["stdlib"], paths["platstdlib"], *zips)


@functools.cache
def _distributions() -> dict[str, tuple[str, ...]]:
    """Map top-level names to distributions.

    ``importlib.metadata.packages_distributions`` of Python 3.10 misses wheels without
    ``top_level.txt``, which most build tools no longer write.
    """
    found: dict[str, dict[str, None]] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        for file in distribution.files or ():
            top = file.parts[0]
            if top not in {"..", "__pycache__"} and not is_metadata(top):
                found.setdefault(top, {})[name] = None
    return {top: tuple(sorted(names)) for top, names in found.items()}
