"""TensorRT or TensorRT-RTX, whichever a process uses: its module, and its one logger.

Both have one API; what only one of them has is asked for by name, never by version. A process
uses one of them: a second logger would be ignored, with a warning.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from trtbuild.backends.trt_log import Messages

if TYPE_CHECKING:
    from types import ModuleType

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}

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
    """Import the flavor of a backend (``tensorrt`` or ``tensorrt-rtx``) and return it."""
    return Api(backend, importlib.import_module(_MODULES[backend]))


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
