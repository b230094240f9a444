"""The backends: one module each, looked up by name here and imported only when asked for.

A backend is a module that satisfies :class:`Backend`; its runtime half, which production
services import, is a second module that satisfies :class:`Runtime` and reads no ONNX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol, cast

from trtbuild.engine import Target, Value
from trtbuild.errors import MissingBackendError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from trtbuild.backends.job import BuildRequest
    from trtbuild.backends.scheme import Scheme, WeightScheme
    from trtbuild.backends.session import Attached, LoadedSession, SessionOptions
    from trtbuild.engine import (
        BuildRecord,
        Fingerprint,
        Manifest,
        Precision,
        Rest,
        Setting,
        ShapeRange,
        TensorSpec,
    )
    from trtbuild.graph import Graph


class Availability(Value, frozen=True, kw_only=True):
    """A target, and whether this machine can build and run it; a reason where it cannot.

    ``cannot_build`` and ``cannot_run`` are empty where it can; otherwise they say why not and
    what would make it possible.
    """

    target: Target
    cannot_build: str = ""
    cannot_run: str = ""


class Session(Protocol):
    """A loaded engine or graph that computes outputs from inputs; safe to share by threads."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that :meth:`run` expects."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs that :meth:`run` returns, in the engine's order."""

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs by name, in the engine's order, for arrays by input name."""


class Backend(Protocol):
    """What a build module offers; every name is a plain function or constant of the module."""

    OPTIONS: Mapping[str, Setting]
    """The builder settings it honors, with their defaults."""

    REFUSED: Mapping[str, str]
    """Why it does not honor settings that other backends have, where that is worth saying."""

    PRECISIONS: tuple[Precision, ...]
    """The precisions that it has kernels for, on some processor or GPU."""

    SCHEME: Scheme
    """How it wants Q/DQ of INT8."""

    SCHEMES: Mapping[Precision, Scheme]
    """How it wants Q/DQ, by the precision of activations and weights."""

    WEIGHTS: Mapping[Precision, WeightScheme]
    """How it wants packed weights, by the precision that packs nothing else."""

    RESTS: tuple[Rest, ...]
    """What it can compute in around quantized layers."""

    def targets(self, archs: tuple[str, ...]) -> tuple[Availability, ...]:
        """Return one entry per architecture named, or per one it offers here if none is."""

    def rest(self) -> Rest:
        """Return what it computes in around quantized layers where nobody says."""

    def cannot_compute(self, arch: str, precision: Precision) -> str:
        """Return why no engine for ``arch`` computes in ``precision``, or an empty string."""

    def fingerprint(self, target: Target) -> Fingerprint:
        """Return what of the installed library changes the bytes of an engine."""

    def preflight(self, graph: Graph, target: Target, precision: Precision) -> None:
        """Refuse, before any build, what the library would get wrong or die of."""

    def cannot_set(self, settings: Mapping[str, Setting]) -> str:
        """Return why these settings, of those it honors, do not fit, or an empty string."""

    def gpus(self, target: Target) -> tuple[str, ...]:
        """Return the PCI bus ids of the GPUs here that suit a build for ``target``.

        Empty where it times no kernels. Who builds holds the lock of the one that it uses.
        """

    def build(self, request: BuildRequest) -> BuildRecord:
        """Write the engine that is asked for; always called in a child process."""


class Runtime(Protocol):
    """What a runtime module offers."""

    def version(self, backend: str) -> str:
        """Return the library that loads engines of ``backend`` here, and its version."""

    def cannot_run(self, target: Target, settings: tuple[tuple[str, Setting], ...] = ()) -> str:
        """Return why an engine of ``settings`` for ``target`` cannot run here, or nothing."""

    def preflight(self, manifest: Manifest, options: SessionOptions) -> None:
        """Refuse, before any byte of it is read, an engine that this machine cannot run.

        Raises:
            MissingBackendError: something is not installed, or not on this machine.
            TrustError: the engine is for another machine, GPU or version of its library.
            UsageError: an option has no meaning for it.
        """

    def open_session(
        self,
        engine: bytes,
        target: Target,
        options: SessionOptions = ...,
        attached: Attached = ...,
        profiles: tuple[tuple[ShapeRange, ...], ...] = ...,
    ) -> LoadedSession:
        """Return a session of an engine whose bytes were verified by the caller.

        It refuses shapes that no profile holds: its own where the engine has them inside, else
        those of its manifest, ``profiles``.
        """


_MODULES = {
    "onnxruntime": ("trtbuild.backends.onnxruntime", "trtbuild.backends.ort_session"),
    "tensorrt": ("trtbuild.backends.tensorrt", "trtbuild.backends.trt_session"),
    "tensorrt-rtx": ("trtbuild.backends.tensorrt_rtx", "trtbuild.backends.trt_session"),
}

_EXTRAS = {
    "onnxruntime": "trtbuild",
    "tensorrt": "trtbuild[tensorrt]",
    "tensorrt-rtx": "trtbuild[rtx]",
}

NAMES = tuple(_MODULES)


def backend(name: str) -> Backend:
    """Import and return the build module of the backend ``name``.

    Raises:
        UsageError: no backend has this name.
        MissingBackendError: its library is not installed; the message has the install line.
    """
    return cast("Backend", _load(name, 0))


def runtime(name: str) -> Runtime:
    """Import and return the runtime module of ``name``; raises as :func:`backend`."""
    return cast("Runtime", _load(name, 1))


def _load(name: str, index: int) -> object:
    if name not in _MODULES:
        message = f"no backend is called {name!r}: expected one of {', '.join(NAMES)}"
        raise UsageError(message)
    try:
        return importlib.import_module(_MODULES[name][index])
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("trtbuild"):
            raise
        message = (
            f"backend {name!r} needs the Python package {error.name!r}, not installed here: "
            f"pip install '{_EXTRAS[name]}'"
        )
        raise MissingBackendError(message) from error
