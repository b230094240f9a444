"""TensorRT or TensorRT-RTX, whichever a process uses: its module, and its one logger.

Both have one API; what only one of them has is asked for by name, never by version. A process
uses one of them: a second logger would be ignored, with a warning.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from trtbuild.backends.trt_log import DRIVER, Messages
from trtbuild.errors import MissingBackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}

_NO_CUDA = "CUDA initialization failure"
_LEAN_LIBRARIES = "tensorrt_lean_libs"

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""TensorRT's element types by NumPy name; a version may lack some."""


class Api:
    """One flavor of TensorRT, imported: ``trt`` is its module, ``title`` its name in errors."""

    def __init__(self, backend: str, trt: ModuleType) -> None:
        self.backend = backend
        self.trt = trt
        self.title = f"{_TITLES[backend]} {trt.__version__}"
        self.messages = Messages()
        self.logger = _logger(trt, self.messages)
        self._dtypes = {
            trt.DataType.__members__[name]: dtype
            for name, dtype in _DTYPES.items()
            if name in trt.DataType.__members__
        }

    def dtype(self, found: Any) -> str:  # noqa: ANN401  the bindings have no types
        """Return the NumPy name of an element type, or an empty string where it has none."""
        return self._dtypes.get(found, "")


@functools.cache
def api(backend: str) -> Api:
    """Import the flavor of a backend (``tensorrt`` or ``tensorrt-rtx``) and return it.

    Raises:
        MissingBackendError: it is installed, and cannot be loaded.
    """
    return Api(backend, imported(_MODULES[backend]))


def imported(module: str) -> ModuleType:
    """Import TensorRT's bindings, whose libraries may lack what they are linked to.

    Raises:
        MissingBackendError: they cannot be loaded; the message has the linker's words.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        said = " ".join(str(error).split())
        message = (
            f"the Python package {module!r} cannot be loaded: {said}. Install it again with "
            f"all of its parts: pip install --force-reinstall {module.replace('_', '-')}"
        )
        raise MissingBackendError(message) from error


def started(found: Api, make: Callable[[], Any]) -> Any:  # noqa: ANN401  untyped bindings
    """Return the builder or runtime that ``make`` creates.

    TensorRT returns none where CUDA does not start, of which the bindings say "factory function
    returned nullptr", or one that dies of the first call (tensorrt-lean 11.4).

    Raises:
        MissingBackendError: the message has TensorRT's own reason.
    """
    errors = found.messages.errors
    errors.clear()
    try:
        made = make()
    except (TypeError, RuntimeError) as error:
        errors.append(str(error))
        raise _not_started(found, errors) from error
    if any(_NO_CUDA in text for text in errors):
        raise _not_started(found, errors)
    return made


def place_on_dla(found: Api, runtime: Any, core: int) -> None:  # noqa: ANN401  untyped bindings
    """Let a runtime open engines for this DLA core, where ``core`` is one (-1 for none).

    Raises:
        MissingBackendError: it is not here.
    """
    if core < 0:
        return
    runtime.DLA_core = core
    if runtime.DLA_core != core:
        message = (
            f"{found.title} did not take DLA core {core}, this machine has "
            f"{runtime.num_DLA_cores}: move to a Jetson that has it, or build without dla_core"
        )
        raise MissingBackendError(message)


def _not_started(found: Api, errors: Sequence[str]) -> MissingBackendError:
    said = "; ".join(dict.fromkeys(errors))
    message = f"{found.title} does not start here: {said}. What to do: {DRIVER}"
    return MissingBackendError(message)


def load_lean() -> None:
    """Load the lean runtime's library, if its package is here, for the builder to find.

    A builder puts it into version-compatible engines and asks the linker for it by its bare
    name, which finds what a process has loaded. The package of libraries has no bindings.
    """
    if importlib.util.find_spec(_LEAN_LIBRARIES) is not None:
        importlib.import_module(_LEAN_LIBRARIES)


def _logger(trt: ModuleType, messages: Messages) -> object:
    """Return a logger that hands every message to ``messages``."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]  # untyped bindings
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401  untyped bindings
            messages.take(severity.name, message)

    return Logger()
