"""Plug-in libraries, up to where TensorRT is asked for their creators."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from trtbuild.backends import _trt, trt_plugins, trt_session
from trtbuild.backends.session import Attached
from trtbuild.backends.trt_log import Messages
from trtbuild.errors import MissingBackendError, TrustError

if TYPE_CHECKING:
    from pathlib import Path

LOADED = """
#include <stdlib.h>
__attribute__((constructor)) static void loaded(void) {{
  const char *before = getenv("{name}");
  setenv("{name}", before ? "again" : "once", 1);
}}
{more}
"""


def library(folder: Path, name: str, more: str = "") -> bytes:
    """Compile a library that leaves in the variable ``name`` how often it was loaded."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source, out = folder / f"{name}.c", folder / f"{name}.so"
    source.write_text(LOADED.format(name=name, more=more))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", out, source], check=True)
    return out.read_bytes()


def loads(name: str) -> str:
    """Return what C's environment, which Python's is a copy of, says of the library."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    found = getenv(name.encode())
    return found.decode() if found else ""


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def never(path: str) -> bool:
    pytest.fail(f"TensorRT was asked to load {path}")


def test_a_library_that_registers_itself_is_loaded_once_per_process(tmp_path: Path) -> None:
    content = library(tmp_path, "STATIC_PLUGIN")
    for _ in range(2):
        trt_plugins.load([content], digest(content), never, "engine")
    assert loads("STATIC_PLUGIN") == "once"


def test_creators_are_asked_for_at_an_absolute_path_that_holds_the_very_bytes(
    tmp_path: Path,
) -> None:
    content = library(tmp_path, "ASKED_PLUGIN", "void *getPluginCreators(void) { return 0; }")
    seen = []

    def register(path: str) -> bool:
        with open(path, "rb") as file:  # noqa: PTH123  a path as TensorRT gets it
            seen.append((path.startswith("/"), file.read() == content))
        return True

    for _ in range(2):
        trt_plugins.load([content], digest(content), register, "engine")
    assert seen == [(True, True)]


def test_a_library_that_the_registry_refuses_is_told_and_tried_again(tmp_path: Path) -> None:
    content = library(tmp_path, "REFUSED_PLUGIN", "void *getCreators(void) { return 0; }")
    for _ in range(2):
        with pytest.raises(MissingBackendError, match="registry of plug-ins refuses it"):
            trt_plugins.load([content], digest(content), lambda _: False, "engine")


def test_other_libraries_than_those_of_the_key_are_never_loaded(tmp_path: Path) -> None:
    content = library(tmp_path, "OTHER_PLUGIN")
    known = library(tmp_path, "KNOWN_PLUGIN")
    for given, wanted in (
        ([content], digest(known)),
        ([known, content], digest(known)),
        ([], digest(known)),
        ([content], ""),
    ):
        with pytest.raises(TrustError, match="nothing was loaded"):
            trt_plugins.load(given, wanted, never, "engine")
    assert loads("OTHER_PLUGIN") == loads("KNOWN_PLUGIN") == ""


def test_what_the_linker_says_of_a_broken_library_is_told_with_a_remedy(
    tmp_path: Path,
) -> None:
    lacking = library(
        tmp_path, "LACKING_PLUGIN", "void absent(void); void *at = (void *)absent;"
    )
    for content, words in ((lacking, "undefined symbol: absent"), (b"text", "invalid ELF")):
        try:
            trt_plugins.load([content], digest(content), never, "engine 0123")
        except MissingBackendError as error:
            text = str(error)
        else:
            pytest.fail("it was loaded")
        assert words in text or "file too short" in text
        assert text.startswith(f"engine 0123: its plug-in library {digest(content)[:12]}")
        assert "LD_LIBRARY_PATH" in text
        assert "/trtbuild-plugin-" not in text


def test_an_engines_session_loads_them_after_tensorrts_own(tmp_path: Path) -> None:
    content = library(tmp_path, "SESSION_PLUGIN", "void *getCreators(void) { return 0; }")
    calls: list[str] = []

    def load_library(path: str) -> object:
        calls.append(path.rpartition("/")[2])
        return object()

    trt = SimpleNamespace(
        init_libnvinfer_plugins=lambda _logger, _space: calls.append("stock"),
        get_plugin_registry=lambda: SimpleNamespace(load_library=load_library),
    )
    found: Any = SimpleNamespace(trt=trt, logger=None, messages=Messages(), backend="tensorrt")
    attached = Attached(plugins=(content,), plugin_digests=digest(content))
    trt_session.load_plugins(found, attached, "engine")
    assert calls == ["stock", f"plugin_{digest(content)[:12]}.so"]
    trt_session.load_plugins(found, Attached(), "engine")
    assert calls[2:] == ["stock"], "the parser makes operators to plug-ins that nobody named"
    found.backend = "tensorrt-rtx"
    trt_session.load_plugins(found, Attached(), "engine")
    assert len(calls) == 3


def test_a_builder_puts_plugins_where_its_runtimes_find_them(tmp_path: Path) -> None:
    content = library(tmp_path, "BUILDER_PLUGIN", "void *getCreators(void) { return 0; }")
    (tmp_path / "plugin.so").write_bytes(content)
    seen: list[str] = []

    def load_library(path: str) -> object:
        seen.append(path)
        return object()

    everyones = SimpleNamespace(load_library=load_library)
    trt = SimpleNamespace(
        init_libnvinfer_plugins=lambda *_: True, get_plugin_registry=lambda: everyones
    )
    build = object.__new__(_trt._Build)  # noqa: SLF001  its step, without a library
    vars(build).update(
        _api=SimpleNamespace(trt=trt, logger=None, messages=Messages(), backend="tensorrt"),
        _values={"plugins": digest(content)},
        _request=SimpleNamespace(
            plugins=(tmp_path / "plugin.so",), graph=SimpleNamespace(path=tmp_path / "m.onnx")
        ),
    )
    build.load_plugins()
    assert len(seen) == 1
