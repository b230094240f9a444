"""Load and call a user's own code, named ``file.py:name`` or ``package.module:name``.

It runs with the user's rights. Whatever goes wrong in it becomes one sentence with the user's
own line; what it prints goes to stderr, since stdout belongs to ``--json``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from trtbuild.errors import SourceError, TrtbuildError
from trtbuild.sources import absolute
from trtbuild.sources.dependencies import file_digest
from trtbuild.sources.imports import is_local_file, local_closure
from trtbuild.sources.tracing import note_module, note_read, recording, replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trtbuild.sources.tracing import Recorder


@dataclass(frozen=True, kw_only=True)
class UserObject:
    """A callable of the user's: its module, its name, and the folder its imports start from."""

    module: ModuleType
    name: str
    folder: Path
    value: Callable[..., object]

    @property
    def label(self) -> str:
        """What errors call it: file and name."""
        file = self.module.__file__
        return f"{Path(file).name if file else self.module.__name__}:{self.name}"

    def sibling(self, name: str) -> object:
        """Return another attribute of the same module, ``None`` where it has none."""
        return getattr(self.module, name, None)

    def call(self) -> object:
        """Return what the callable returns without arguments.

        Raises:
            SourceError: it raised; the message has the user's line.
        """
        with running(self.label, self.folder):
            return self.value()


@dataclass(frozen=True)
class _Loaded:
    module: ModuleType
    recorder: Recorder
    sources: tuple[tuple[str, str], ...]


_loaded: dict[Path, _Loaded] = {}
_local: dict[str, tuple[Path, str, str]] = {}
"""Modules that user folders brought into ``sys.modules``: folder, file and digest of each."""

_lock = threading.RLock()


def load(location: str, folder: Path) -> UserObject:
    """Return the callable that ``location`` names; relative files start from ``folder``.

    Raises:
        SourceError: the file, module or name is missing, is not callable, or loading it raised.
    """
    where, colon, name = location.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise SourceError(
            f"{location!r} names no callable: expected file.py:name or package.module:name"
        )
    is_file = where.endswith(".py")
    start = absolute(where, folder).parent if is_file else folder
    module = load_file(absolute(where, folder)) if is_file else _load_module(where, folder)
    value = getattr(module, name, None)
    if value is None:
        known = ", ".join(_functions(module)) or "none"
        raise SourceError(f"{where}: has no {name!r}; the functions it has: {known}")
    if not callable(value):
        raise SourceError(
            f"{where}: {name!r} is of type {type(value).__name__}, not callable: expected a "
            "function or class that takes no arguments"
        )
    return UserObject(module=module, name=name, folder=start, value=value)


def load_file(path: Path) -> ModuleType:
    """Return the module in a Python file, run once per content of it and of its local imports.

    The file's folder is importable while it runs. Its module has a name of its own, so two
    recipes may both have a ``model.py``.

    Raises:
        SourceError: the file is missing or is no Python, or running it raised.
    """
    path = path.resolve()
    with _lock:
        known = _loaded.get(path)
        if known is not None and all(file_digest(p) == sha for p, sha in known.sources):
            replay(known.recorder)
        else:
            known = _loaded[path] = _run_file(path)
        note_module(known.module)
        _note_declared(known.module, path)
        return known.module


def _run_file(path: Path) -> _Loaded:
    try:
        code = path.read_bytes()
    except OSError as error:
        raise SourceError(
            f"{path}: cannot read the Python file: {error.strerror}. "
            f"Paths in a recipe start from its folder"
        ) from error
    name = f"trtbuild_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and typing look their module up while it runs
    _forget_others(path.parent)
    try:
        with running(path.name, path.parent), recording() as recorder:
            exec(compile(code, str(path), "exec"), module.__dict__)  # noqa: S102  a recipe's own code
    except SourceError:
        del sys.modules[name]
        raise
    files, _ = local_closure([module])
    return _Loaded(module, recorder, tuple((file, file_digest(file)) for file in files))


def _load_module(name: str, folder: Path) -> ModuleType:
    with _lock:
        _forget_others(folder)
        try:
            with running(name, folder):
                module = importlib.import_module(name)
        except SourceError as error:
            cause = error.__cause__
            if isinstance(cause, ModuleNotFoundError) and f"{name}.".startswith(
                f"{cause.name}."
            ):
                raise SourceError(
                    f"no module is called {name!r}: neither installed nor in {folder}"
                ) from error
            raise
        note_module(module)
        return module


@contextlib.contextmanager
def running(label: str, folder: Path) -> Iterator[None]:
    """Run user code: its folder is importable, its prints go to stderr, its errors get a line.

    Raises:
        SourceError: what ran raised anything but one of trtbuild's own errors.
    """
    before = frozenset(sys.modules)
    writes_bytecode = sys.dont_write_bytecode
    # An edit within a second that keeps the size would leave the old .pyc in force.
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except TrtbuildError:
        raise
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise SourceError(f"{label}: {described(error, folder)}") from error
    finally:
        sys.dont_write_bytecode = writes_bytecode
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        _remember_local(before, folder)


def described(error: BaseException, folder: Path) -> str:
    """Return ``raised ValueError: message (file.py line 3: code)`` for a user's exception."""
    text = f"raised {type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, SyntaxError):
        return text
    home = folder.resolve()
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_local(str(Path(frame.filename).resolve()), home)]
    if not own:
        return text
    last = own[-1]
    return f"{text} ({Path(last.filename).name} line {last.lineno}: {last.line})"


def _functions(module: ModuleType) -> list[str]:
    return sorted(
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    )


def _note_declared(module: ModuleType, path: Path) -> None:
    """Record the files that the module's ``FILES`` names: those that native code reads."""
    declared = getattr(module, "FILES", ())
    if not isinstance(declared, (tuple, list)) or not all(isinstance(f, str) for f in declared):
        raise SourceError(f"{path.name}: FILES must be a tuple of file names, got {declared!r}")
    for name in declared:
        file = path.parent / name
        if not file.is_file():
            raise SourceError(f"{path.name}: FILES names {name!r}, but {file} is no file")
        note_read(file)


def _is_local(file: object, folder: Path) -> bool:
    """Tell whether a file is the user's own, and not of a virtual environment in the folder."""
    return is_local_file(file) and str(file).startswith(f"{folder}/")


def _remember_local(before: frozenset[str], folder: Path) -> None:
    home = folder.resolve()
    for name, module in sys.modules.copy().items():
        file = getattr(module, "__file__", None)
        if name not in before and _is_local(file, home):
            _local[name] = (home, str(file), file_digest(str(file)))


def _forget_others(folder: Path) -> None:
    """Forget the modules of other folders, and of this one if any of them has changed.

    Two folders may use one name, and an edited file is to be read again.
    """
    home = folder.resolve()
    current = [entry for entry in _local.values() if entry[0] == home]
    is_stale = any(file_digest(file) != digest for _, file, digest in current)
    for name, (other, _, _) in list(_local.items()):
        if is_stale or other != home:
            sys.modules.pop(name, None)
            del _local[name]
