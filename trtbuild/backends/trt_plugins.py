"""Plug-in libraries: exactly the bytes of an engine's key, loaded once per process and digest.

A library is written to a private folder, loaded from there by its absolute path, and never
unloaded: TensorRT's registry keeps pointers into it.
"""

from __future__ import annotations

import ctypes
import hashlib
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.errors import MissingBackendError, TrustError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ENTRIES = ("getPluginCreators", "getCreators")
"""What a library exports that TensorRT is to ask for its creators (NvInferRuntime.h,
``IPluginRegistry::loadLibrary``); any other registers them itself while it is loaded."""

_SHOWN_DIGITS = 12
_loaded: dict[str, ctypes.CDLL] = {}
_lock = threading.Lock()


def load(
    libraries: Sequence[bytes], wanted: str, register: Callable[[str], bool], what: str
) -> None:
    """Load the contents of ``libraries``, each whose digest no earlier call has loaded.

    ``wanted`` are the digests that the key of ``what`` names, joined by commas. ``register``
    gets the path of a library whose creators TensorRT must ask for.

    Raises:
        TrustError: they are not the libraries of the key.
        MissingBackendError: the dynamic linker, or TensorRT, refuses one; the message has its
            words.
    """
    digests = [hashlib.sha256(content).hexdigest() for content in libraries]
    named = [word for word in wanted.split(",") if word]
    if digests != named:
        raise TrustError(
            f"{what}: its key names the plug-in libraries {_short(named)}, got "
            f"{_short(digests)}: nothing was loaded. Build it again with the "
            "libraries that you trust"
        )
    with _lock:
        for sha256, content in zip(digests, libraries, strict=True):
            if sha256 not in _loaded:
                _loaded[sha256] = _load(content, sha256, register, what)


def _load(
    content: bytes, sha256: str, register: Callable[[str], bool], what: str
) -> ctypes.CDLL:
    name = f"plugin_{sha256[:_SHOWN_DIGITS]}.so"
    with tempfile.TemporaryDirectory(prefix="trtbuild-plugin-") as folder:
        path = Path(folder).resolve() / name
        path.write_bytes(content)  # the folder is ours alone
        try:
            library = ctypes.CDLL(str(path))
            asked = any(hasattr(library, entry) for entry in _ENTRIES)
            accepted = not asked or register(str(path))
        except (OSError, RuntimeError) as error:
            text = " ".join(str(error).replace(str(path), name).split())
            raise _refused(what, sha256, text) from error
    if not accepted:
        raise _refused(what, sha256, "TensorRT's registry of plug-ins refuses it")
    return library


def _refused(what: str, sha256: str, reason: str) -> MissingBackendError:
    return MissingBackendError(
        f"{what}: its plug-in library {sha256[:_SHOWN_DIGITS]} cannot be loaded: {reason}. "
        "Install what the library needs (ldd lists it) or add its folder to LD_LIBRARY_PATH; "
        "where programs may not run from the temporary folder, let TMPDIR name another"
    )


def _short(digests: Sequence[str]) -> str:
    return ", ".join(sha256[:_SHOWN_DIGITS] for sha256 in digests) or "none"
