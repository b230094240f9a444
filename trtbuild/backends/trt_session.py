"""Runs engines of both flavors of TensorRT: what must be here, importable without a GPU."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import msgspec

from trtbuild.backends import (
    compatibility,
    distributions,
    fingerprint,
    gpu,
    processor,
    trt_plugins,
    trt_settings,
)
from trtbuild.backends.session import DEFAULT, NOTHING, Plan
from trtbuild.engine import Value
from trtbuild.errors import MissingBackendError, TrustError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from trtbuild.backends.session import Attached, LoadedSession, SessionOptions
    from trtbuild.backends.trt_api import Api
    from trtbuild.engine import Manifest, Setting, ShapeRange, Target

_TENSORRT = "tensorrt"
_LEAN = "tensorrt_lean"
_MODULES: Mapping[str, tuple[str, ...]] = {
    "tensorrt-rtx": ("tensorrt_rtx",),
    _TENSORRT: (_TENSORRT, _LEAN),
}
_EXTRAS = {"tensorrt-rtx": "trtbuild[rtx,gpu]", _TENSORRT: "trtbuild[tensorrt]"}


class Library(Value, frozen=True, kw_only=True):
    """An installed TensorRT: its module, version, and the CUDA it is built for (0: unknown).

    The lean runtime loads version-compatible engines only.
    """

    module: str
    version: str
    cuda_major: int

    @property
    def lean(self) -> bool:
        """Whether it is the lean runtime."""
        return self.module == _LEAN


class Machine(Value, frozen=True, kw_only=True):
    """What of a machine decides whether an engine runs; ``gpus`` are architecture and model.

    ``absence`` says why no GPU can be used, ``driver`` is the newest CUDA that it supports,
    ``missing`` are Python packages that are not installed.
    """

    os: str
    gpus: tuple[tuple[str, str], ...]
    absence: str
    driver: tuple[int, int]
    installed: Library | None
    missing: tuple[str, ...]


def here(backend: str) -> Machine:
    """Return this machine, as engines of a backend see it; imports no library."""
    packages = {"pycuda": "pycuda", "cuda": "cuda-bindings"}
    return Machine(
        os=processor.os_name(),
        gpus=tuple((each.arch, each.identity) for each in gpu.gpus()),
        absence=gpu.why_none(),
        driver=gpu.driver_cuda(),
        installed=_library(backend),
        missing=tuple(p for m, p in packages.items() if not fingerprint.has_module(m)),
    )


def version(backend: str) -> str:
    """Return the installed TensorRT, its lean runtime where it is alone, or ``none``."""
    library = _library(backend)
    return f"{library.module} {library.version}" if library else "none"


def lacks(backend: str, machine: Machine) -> str:
    """Return what ``machine`` lacks to run any engine of ``backend``, or an empty string."""
    if machine.absence:
        return machine.absence
    install = f"pip install '{_EXTRAS[backend]}'"
    library = machine.installed
    if library is None:
        return f"the Python package {_MODULES[backend][0]!r} is not installed: {install}"
    if machine.missing:
        return f"the Python package {machine.missing[0]!r} is not installed: {install}"
    return compatibility.driver_refusal(
        f"{library.module} {library.version}", library.cuda_major, machine.driver
    )


def misfit(target: Target, settings: Mapping[str, Setting], machine: Machine) -> str:
    """Return why an engine is not for ``machine``, or an empty string."""
    if target.os != machine.os:
        return f"the engine is for {target.os}, this machine is {machine.os}: move"
    archs = tuple(arch for arch, _ in machine.gpus)
    if target.arch in archs:
        models = tuple(model for arch, model in machine.gpus if arch == target.arch)
        if not target.device or target.device in models:
            return ""
        return (
            f"the engine holds kernels chosen on another model, {target.device}, this machine "
            f"has {', '.join(models)}: build it for this one, or with hardware_compatible"
        )
    if settings.get("hardware_compatible") == "ampere_plus" and any(map(gpu.is_ampere, archs)):
        return ""  # on all of them, also on those before the one that built it
    return (
        f"the engine is for {target.arch}, this machine's GPU is {', '.join(archs)}: build "
        "for it, or move"
    )


def version_misfit(manifest: Manifest, library: Library, *, allow_host_code: bool) -> str:
    """Return why the installed library must not load an engine, or an empty string."""
    settings = dict(manifest.preimage.settings)
    compatible = bool(settings.get("version_compatible"))
    if library.lean and not compatible:
        return (
            "only the lean runtime is installed, which loads version-compatible engines: "
            "pip install 'trtbuild[tensorrt]', or build the engine version-compatible"
        )
    if library.lean and settings.get("strip_plan"):
        return (
            "the engine was stored without its weights, which the lean runtime cannot give it: "
            "pip install 'trtbuild[tensorrt]', or build the engine without strip_plan"
        )
    built_with = manifest.preimage.fingerprint.version
    reason = compatibility.refusal(built_with, library.version, version_compatible=compatible)
    if reason:
        return reason
    brings_code = trt_settings.brings_code(settings)
    if brings_code and not library.lean and not allow_host_code:
        return (
            "a version-compatible engine brings its own runtime, code for the processor: "
            "load it with allow_host_code=True if you trust who built it, or build it with "
            "exclude_lean_runtime"
        )
    return ""


def cannot_run(target: Target, settings: tuple[tuple[str, Setting], ...] = ()) -> str:
    """Return why an engine of ``settings`` for ``target`` cannot run here, or nothing."""
    machine = here(target.backend)
    return lacks(target.backend, machine) or misfit(target, dict(settings), machine)


def preflight(manifest: Manifest, options: SessionOptions) -> None:
    """Refuse an engine that would be refused, or do harm, once its bytes are given away.

    Without a GPU TensorRT dies of some engines instead of refusing them.

    Raises:
        MissingBackendError: driver, GPU, library or package is not here, or too old.
        TrustError: the engine is for another machine, GPU or version of TensorRT.
    """
    check(manifest, options, here(manifest.preimage.target.backend))


def check(manifest: Manifest, options: SessionOptions, machine: Machine) -> None:
    """Refuse an engine on ``machine``; raises as :func:`preflight`."""
    target = manifest.preimage.target
    start = f"engine {manifest.sha256[:12]} for {target} cannot run here: "
    reason = lacks(target.backend, machine)
    if reason or machine.installed is None:
        raise MissingBackendError(start + reason)
    reason = misfit(target, dict(manifest.preimage.settings), machine)
    if not reason and options.device >= len(machine.gpus):
        reason = f"there is no GPU {options.device}, the last one is {len(machine.gpus) - 1}"
    if not reason and options.device >= 0:
        chosen = (machine.gpus[options.device],)
        only = msgspec.structs.replace(machine, gpus=chosen)
        reason = misfit(target, dict(manifest.preimage.settings), only)
    reason = reason or version_misfit(
        manifest, machine.installed, allow_host_code=options.allow_host_code
    )
    if reason:
        raise TrustError(start + reason)


def open_session(
    engine: bytes,
    target: Target,
    options: SessionOptions = DEFAULT,
    attached: Attached = NOTHING,
    profiles: tuple[tuple[ShapeRange, ...], ...] = (),
) -> LoadedSession:
    """Return a session of an engine, on the first GPU of its architecture unless one is named.

    Its plug-in libraries are loaded first, and its weights given back where it has none. Its
    profiles are inside of it, ``profiles`` is not read.

    Raises:
        MissingBackendError: something is missing here, a plug-in library cannot be loaded, or
            there is too little device memory.
        TrustError: TensorRT refuses the bytes, or a library is not the one of the key.
        BuildError: a tensor has a type or layout that NumPy lacks.
    """
    del profiles
    found, index = prepared(target, options, attached)
    from trtbuild.backends import trt_device  # noqa: PLC0415  its imports need a driver

    labels = {"backend": target.backend, "arch": target.arch}
    return trt_device.open_engine(_plan(engine, attached), index, found, options, labels)


def layer_ms(
    engine: bytes,
    target: Target,
    options: SessionOptions,
    attached: Attached,
    inputs: Mapping[str, npt.NDArray[Any]],
) -> dict[str, float]:
    """Return the time of each layer of an engine, opened as :func:`open_session` opens it.

    By the engine's own names, in milliseconds per call.

    Raises:
        MissingBackendError: as :func:`open_session`.
        TrustError: as :func:`open_session`.
        BuildError: the engine fails, or has outputs whose shape depends on values.
    """
    found, index = prepared(target, options, attached)
    from trtbuild.backends import trt_times  # noqa: PLC0415  its imports need a driver

    plan = _plan(engine, attached)
    return trt_times.engine_layer_ms(plan, index, found, options, inputs)


def prepared(target: Target, options: SessionOptions, attached: Attached) -> tuple[Api, int]:
    """Return the library, the engine's plug-ins loaded, and the place of its GPU.

    Raises:
        MissingBackendError: something is missing here, or a plug-in library cannot be loaded.
        TrustError: a library is not the one of the key.
    """
    machine = here(target.backend)
    reason = lacks(target.backend, machine)
    if reason or machine.installed is None:
        raise MissingBackendError(reason)
    _require_pycuda(machine)
    found = load_api(target.backend, machine.installed.module)
    load_plugins(found, attached, f"engine for {target}")
    index = gpu.index_for(target, options.device)
    return found, max(index, 0)  # of no GPU here: TensorRT itself refuses it there


def _plan(engine: bytes, attached: Attached) -> Plan:
    return Plan(
        engine=engine,
        weights=attached.weights,
        dla_core=attached.dla_core,
        streams_weights=attached.streams_weights,
    )


def _require_pycuda(machine: Machine) -> None:
    """Refuse a PyCUDA that was built for more than this machine's driver has.

    Raises:
        MissingBackendError: it does not load.
    """
    try:
        from trtbuild.backends import trt_device  # noqa: F401, PLC0415  its imports need a driver
    except ImportError as error:
        cuda = ".".join(map(str, machine.driver))
        raise MissingBackendError(
            f"PyCUDA does not load with this machine's driver, which is for CUDA {cuda}: "
            f"{error}. Build PyCUDA with a CUDA toolkit of {cuda} or older (pip install "
            "--force-reinstall --no-cache-dir --no-binary pycuda pycuda), or install a newer "
            "driver"
        ) from error


def load_plugins(found: Api, attached: Attached, what: str) -> None:
    """Load the plug-in libraries of ``what``, TensorRT's own before them.

    TensorRT's own are loaded for each of its engines: the parser makes some operators of ONNX
    to plug-ins, which nobody named. The registry is the process's: that of a builder is seen by
    its builder alone, and not by the runtimes that open its engines.

    Raises:
        MissingBackendError: one cannot be loaded.
        TrustError: one is not the one of the key.
    """
    trt, messages = found.trt, found.messages
    if found.backend == _TENSORRT and hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(found.logger, "")  # the lean runtime has none of its own
    if not (attached.plugins or attached.plugin_digests):
        return

    def register(path: str) -> bool:
        messages.errors.clear()
        handle = trt.get_plugin_registry().load_library(path)
        return handle is not None and not messages.errors

    trt_plugins.load(attached.plugins, attached.plugin_digests, register, what)


@functools.cache
def load_api(backend: str, module: str) -> Api:
    """Import the library: TensorRT as builders use it, or its lean runtime."""
    from trtbuild.backends import trt_api  # noqa: PLC0415  reads no library, but its log does

    if module == _LEAN:
        return trt_api.Api(backend, trt_api.imported(module))
    return trt_api.api(backend)


def _library(backend: str) -> Library | None:
    for module in _MODULES[backend]:
        if fingerprint.has_module(module):
            name = fingerprint.layout(module)[0]
            return Library(
                module=module,
                version=distributions.version(name),
                cuda_major=fingerprint.cuda_major(name),
            )
    return None
