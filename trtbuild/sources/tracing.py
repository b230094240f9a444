"""Run a function and record what its result depends on: files, folders, code, packages.

Python tells an audit hook of every file it opens. What native code opens is invisible to it:
``safetensors`` is therefore wrapped, and a user's module names other such files in ``FILES``.
Environment variables, the clock and random numbers are not traced.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING, TypeVar

from trtbuild.backends import distributions
from trtbuild.sources.dependencies import (
    Dependencies,
    Distribution,
    FileRead,
    FolderListed,
    file_digest,
    folder_digest,
)
from trtbuild.sources.imports import (
    distributions_of,
    installed_top,
    is_local_file,
    is_metadata,
    is_system_file,
    local_closure,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

T = TypeVar("T")

_CODE_SUFFIXES = (".py", ".pyc", ".so", ".pyd")

_METADATA_SEARCH = re.compile(r"[\\/]importlib(_|[\\/])metadata[\\/]")

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Recorder:
    """What was touched while it was active, in the order of first use."""

    def __init__(self) -> None:
        self.read: dict[str, None] = {}
        self.listed: dict[str, None] = {}
        self.modules: dict[str, ModuleType] = {}
        self._written: set[str] = set()

    def opened(self, path: str, *, writes: bool) -> None:
        """Note that a file was opened; one that was written first is not a dependency."""
        if writes:
            self._written.add(path)
        elif path not in self._written:
            self.read[path] = None

    def merge(self, earlier: Recorder) -> None:
        """Add what an earlier recorder saw, for work that is not done twice."""
        self.read.update(earlier.read)
        self.listed.update(earlier.listed)
        self.modules.update(earlier.modules)

    def dependencies(self) -> Dependencies:
        """Return what was touched, with the content it has now."""
        files, tops = local_closure(self.modules.values())
        paths = dict.fromkeys(files)
        packages = dict.fromkeys(tops)
        for path in self.read:
            top = installed_top(path)
            if top is not None and path.endswith(_CODE_SUFFIXES):
                continue  # its source shown in a message, say; imports are told by the modules
            if top is not None and distributions_of(top):
                packages[top] = None
            elif not (is_system_file(path) or (top is not None and is_metadata(top))):
                paths[path] = None
        folders = [
            path
            for path in self.listed
            if installed_top(path) is None and not is_system_file(path)
        ]
        names = {name for top in packages for name in distributions_of(top)}
        return Dependencies(
            files=tuple(
                FileRead(path=path, sha256=file_digest(path))
                for path in sorted(paths)
                if not os.path.isdir(path)  # noqa: PTH112  a str, as audit events give it
            ),
            folders=tuple(
                FolderListed(path=path, sha256=folder_digest(path)) for path in sorted(folders)
            ),
            distributions=tuple(
                Distribution(name=name, version=distributions.version(name))
                for name in sorted(names)
            ),
        )


_active: list[Recorder] = []


def traced(function: Callable[[], T]) -> tuple[T, Dependencies]:
    """Return what ``function`` returns, and what it depends on.

    A generator that it returns must be consumed inside it, or its reads are not seen. One
    thread traces at a time; reads of other threads meanwhile are counted too.
    """
    with recording() as recorder:
        result = function()
    return result, recorder.dependencies()


@contextlib.contextmanager
def recording() -> Iterator[Recorder]:
    """Record everything that happens inside; recordings nest."""
    _install_hook()
    recorder = Recorder()
    with _safetensors_recorded():
        before = frozenset(sys.modules)
        _active.append(recorder)
        try:
            yield recorder
        finally:
            _active.remove(recorder)
            recorder.modules.update(_new_local_modules(before))


def _new_local_modules(before: frozenset[str]) -> dict[str, ModuleType]:
    """Return the modules that were imported since and are not installed.

    Installed ones are left to the import statements of the local ones: which of a package's
    modules are loaded depends on what this process did before.
    """
    return {
        name: module
        for name, module in sys.modules.copy().items()  # other threads import, too
        if name not in before and is_local_file(getattr(module, "__file__", None))
    }


def replay(earlier: Recorder) -> None:
    """Tell the active recorders what an earlier one saw."""
    for recorder in _active:
        recorder.merge(earlier)


def note_read(path: str | os.PathLike[str]) -> None:
    """Tell the active recorders that a file is read by means that no hook sees."""
    absolute = os.path.abspath(os.fspath(path))  # noqa: PTH100  links are kept
    for recorder in _active:
        recorder.opened(absolute, writes=False)


def note_module(module: ModuleType) -> None:
    """Tell the active recorders that the source of a module, and its imports, are used."""
    for recorder in _active:
        recorder.modules[module.__name__] = module


@functools.cache
def _install_hook() -> None:
    """Install the audit hook, once: Python cannot remove one. Idle, it costs one comparison."""
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _active or event not in {"open", "os.listdir", "os.scandir"}:
        return
    target = arguments[0] if arguments[0] is not None else "."
    if not isinstance(target, (str, bytes, os.PathLike)):
        return  # a file descriptor: its name was seen when it was opened
    path = os.path.abspath(os.fsdecode(target))  # noqa: PTH100  links are kept
    # Which frame opens is all that tells Python's own searches from the user's reads: the
    # import system is frozen code, and a look for a package's version lists all of sys.path.
    caller = sys._getframe(1).f_code.co_filename  # noqa: SLF001  as above
    importing = caller.startswith("<frozen ") or _METADATA_SEARCH.search(caller) is not None
    for recorder in _active:
        if event == "open":
            if not (importing and path.endswith(_CODE_SUFFIXES)):
                recorder.opened(path, writes=_writes(arguments[1], arguments[2]))
        elif not importing:
            recorder.listed[path] = None


def _writes(mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & _WRITE_FLAGS)


@contextlib.contextmanager
def _safetensors_recorded() -> Iterator[None]:
    """Put a recording wrapper in the place of ``safetensors.safe_open`` everywhere."""
    if importlib.util.find_spec("safetensors") is None:
        yield
        return
    import safetensors  # door 3: a part of the torch extra

    original: Callable[..., object] = safetensors.safe_open

    @functools.wraps(original, updated=())
    def safe_open(
        filename: str | os.PathLike[str], *args: object, **kwargs: object
    ) -> object:  # the wrapped signature is the library's
        note_read(filename)
        return original(filename, *args, **kwargs)

    _replace(original, safe_open)
    try:
        yield
    finally:
        _replace(safe_open, original)


def _replace(old: object, new: object) -> None:
    for module in sys.modules.copy().values():
        names = getattr(module, "__dict__", {})
        if names.get("safe_open") is old:
            names["safe_open"] = new
