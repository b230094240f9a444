"""What is installed on this machine and whether it works, learned without importing any of it.

Versions come from the installed metadata. Whether a library can be imported is tried in a child
process, since a broken one may print, hang or die.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from trtbuild.backends import distributions, processor, sandbox
from trtbuild.engine import Value
from trtbuild.errors import TrtbuildError
from trtbuild.store import location
from trtbuild.store.tiers.address import read_address, shown_uri
from trtbuild.store.tiers.connect import connect
from trtbuild.store.tiers.names import record_name

State = Literal["ok", "missing", "broken"]

_IMPORT_SECONDS = 120
_MEMINFO = Path("/proc/meminfo")
_DRIVER = Path("/proc/driver/nvidia/version")
_PYTHONS = ((3, 10), (3, 13))
_MIB = 1 << 20
_UNASKED = f"not asked: {location.OFFLINE} forbids the network"
_GIB = 1 << 30

_TRY_IMPORT = """\
import importlib, sys
sys.path[:] = [folder for folder in sys.path if folder]
importlib.import_module(sys.argv[1])
"""

# The driver's library is loaded by the child: a broken driver must not take this process along.
_LIST_GPUS = "from trtbuild.backends import gpu; print(*gpu.archs())"


class Check(Value, frozen=True, kw_only=True):
    """One thing that trtbuild needs or can use.

    ``state`` is ``missing`` for what is not installed and ``broken`` for what is there and does
    not work. ``remedy`` is the line that installs or repairs it, or a sentence; it is empty
    where nothing has to be done.
    """

    group: Literal["machine", "backends", "frameworks", "gpu", "store", "trust"]
    name: str
    state: State
    version: str = ""
    detail: str = ""
    remedy: str = ""


class Library(Value, frozen=True, kw_only=True):
    """A Python library: its distributions (the first one found counts), its module, its use."""

    group: Literal["backends", "frameworks", "gpu"]
    name: str
    distributions: tuple[str, ...]
    module: str
    install: str
    use: str


LIBRARIES: tuple[Library, ...] = (
    Library(
        group="backends",
        name="onnxruntime",
        distributions=("onnxruntime", "onnxruntime-gpu"),
        module="onnxruntime",
        install="pip install onnxruntime",
        use="builds and runs engines for this processor",
    ),
    Library(
        group="backends",
        name="tensorrt",
        distributions=("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        module="tensorrt",
        install="pip install 'trtbuild[tensorrt]'",
        use="builds and runs engines for this machine's NVIDIA GPUs",
    ),
    Library(
        group="backends",
        name="tensorrt-rtx",
        distributions=("tensorrt-rtx-cu13", "tensorrt-rtx"),
        module="tensorrt_rtx",
        install="pip install 'trtbuild[rtx]'",
        use="builds engines for NVIDIA RTX GPUs, also without one; runs them where one is",
    ),
    Library(
        group="frameworks",
        name="torch",
        distributions=("torch",),
        module="torch",
        install="pip install 'trtbuild[torch]'",
        use="reads PyTorch models and .pt2 files",
    ),
    Library(
        group="frameworks",
        name="onnxscript",
        distributions=("onnxscript",),
        module="onnxscript",
        install="pip install onnxscript",
        use="exports PyTorch models, simplifies graphs",
    ),
    Library(
        group="frameworks",
        name="safetensors",
        distributions=("safetensors",),
        module="safetensors",
        install="pip install 'trtbuild[torch]'",
        use="reads weights without running code",
    ),
    Library(
        group="gpu",
        name="pycuda",
        distributions=("pycuda",),
        module="pycuda.driver",
        install="pip install 'trtbuild[gpu]'",
        use="memory and streams of engines on a GPU",
    ),
    Library(
        group="gpu",
        name="cuda-bindings",
        distributions=("cuda-bindings",),
        module="cuda.bindings.driver",
        install="pip install 'trtbuild[gpu]'",
        use="CUDA graphs of engines on a GPU",
    ),
    Library(
        group="gpu",
        name="nvidia-ml-py",
        distributions=("nvidia-ml-py",),
        module="pynvml",
        install="pip install 'trtbuild[gpu]'",
        use="names, clocks and energy of GPUs",
    ),
)


def examine(store: str) -> tuple[Check, ...]:
    """Return one check for every part that trtbuild needs or can use.

    ``store`` is the store's folder, empty for the user's cache.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        libraries = tuple(pool.map(library_check, LIBRARIES))
    return (
        *machine_checks(),
        *(check for check in libraries if check.group != "gpu"),
        *gpu_checks(),
        *(check for check in libraries if check.group == "gpu"),
        store_check(store),
        *tier_checks(store),
    )


def machine_checks() -> tuple[Check, ...]:
    """Return the interpreter, the processor and the memory."""
    lowest, highest = _PYTHONS
    supported = lowest <= sys.version_info[:2] <= highest
    python = Check(
        group="machine",
        name="python",
        state="ok" if supported else "broken",
        version=platform.python_version(),
        detail=sys.executable,
        remedy="" if supported else "use Python 3.10 to 3.13",
    )
    arch = processor.arch()
    detail = f"{_cores()} cores"
    if processor.saturates(arch):
        detail += "; no VNNI: int8 weights are kept to 7 bits"
    cpu = Check(group="machine", name="processor", state="ok", version=arch, detail=detail)
    return python, cpu, _memory(), sandbox_check()


def sandbox_check() -> Check:
    """Return whether builds and first loads are confined; without it they have limits only."""
    try:
        found = sandbox.chosen()
    except TrtbuildError as error:
        return Check(group="machine", name="sandbox", state="broken", detail=str(error))
    if found.program:
        detail = f"builds and first loads are confined by {found.program}: no network, no files"
        return Check(group="machine", name="sandbox", state="ok", detail=detail)
    return Check(
        group="machine",
        name="sandbox",
        state="missing",
        detail=f"builds and first loads have resource limits only: {found.reason}",
        remedy=found.remedy,
    )


def _cores() -> int:
    usable = os.sched_getaffinity(0) if sys.platform == "linux" else ()
    return len(usable) or os.cpu_count() or 1


def _memory() -> Check:
    if not _MEMINFO.exists():
        return Check(group="machine", name="memory", state="ok", detail="unknown here")
    kib = {
        name: int(value.split()[0])
        for name, _, value in (
            line.partition(":") for line in _MEMINFO.read_text().splitlines()
        )
    }
    total, available = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    return Check(
        group="machine",
        name="memory",
        state="ok",
        detail=f"{total / _GIB:.1f} GiB, {available / _GIB:.1f} GiB available",
    )


def library_check(library: Library) -> Check:
    """Return whether ``library`` is installed and a child process can import it."""
    version = next(filter(None, map(distributions.version, library.distributions)), "")
    if not version:
        return Check(
            group=library.group,
            name=library.name,
            state="missing",
            detail=library.use,
            remedy=library.install,
        )
    reason = _why_not_importable(library.module)
    return Check(
        group=library.group,
        name=library.name,
        state="broken" if reason else "ok",
        version=version,
        detail=reason or library.use,
        remedy=_repair(reason, library.install) if reason else "",
    )


def _repair(reason: str, install: str) -> str:
    if "libcuda.so" in reason or "libnvidia-ml.so" in reason:
        return "install the NVIDIA driver, or use it on a machine that has one"
    return install.replace("pip install", "pip install --force-reinstall", 1)


def _why_not_importable(module: str) -> str:
    """Return the last line of what importing ``module`` in a child printed, if it failed."""
    return _run_python("-c", _TRY_IMPORT, module)[1]


def _run_python(*arguments: str) -> tuple[str, str]:
    """Return the output of this interpreter in a child process, and why it failed or ``""``."""
    command = [sys.executable, *arguments]
    try:
        child = subprocess.run(  # noqa: S603  our own interpreter with our own arguments
            command, capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"did not answer within {_IMPORT_SECONDS} s"
    if child.returncode == 0:
        return child.stdout, ""
    lines = child.stderr.strip().splitlines()
    if child.returncode < 0:
        return child.stdout, f"died of signal {-child.returncode}"
    return child.stdout, lines[-1] if lines else f"exit code {child.returncode}"


def gpu_checks() -> tuple[Check, ...]:
    """Return the driver and one check per GPU, through NVML where its package is installed."""
    described, _ = (
        _run_python("-m", "trtbuild.backends.nvml")
        if distributions.version("nvidia-ml-py")
        else ("", "")
    )
    if described:
        answer = json.loads(described)
        return (_driver(answer["driver"]), *(_gpu(entry) for entry in answer["gpus"]))
    archs, _ = _run_python("-c", _LIST_GPUS)
    version = _DRIVER.read_text().splitlines()[0] if _DRIVER.exists() else ""
    return (
        _driver(version),
        *(
            _gpu({"name": f"GPU {index}", "arch": arch, "memory_bytes": 0})
            for index, arch in enumerate(archs.split())
        ),
    )


def _driver(version: str) -> Check:
    if version:
        return Check(group="gpu", name="nvidia driver", state="ok", version=version)
    return Check(
        group="gpu",
        name="nvidia driver",
        state="missing",
        detail="no NVIDIA driver on this machine; engines for GPUs are built and not run here",
        remedy="install the NVIDIA driver to run them",
    )


def _gpu(entry: dict[str, str | int]) -> Check:
    memory = int(entry["memory_bytes"])
    return Check(
        group="gpu",
        name=str(entry["name"]),
        state="ok",
        version=str(entry["arch"]),
        detail=f"{memory // _MIB} MiB" if memory else "",
    )


def tier_checks(uri: str) -> list[Check]:
    """Return whether the remote tiers of a store answer; with none there is nothing to tell.

    Offline, those that need the network are not asked.
    """
    checks = []
    for remote in location.locate(uri).remotes:
        try:
            address = read_address(remote)
            if location.is_offline() and address.is_network:
                found = Check(
                    group="store", name=address.shown, state="missing", detail=_UNASKED
                )
            else:
                connect(address).size(record_name("engine", "0" * 64))
                found = Check(
                    group="store",
                    name=address.shown,
                    state="ok",
                    detail="answers; results go there too"
                    if address.write
                    else "answers; read",
                )
        except TrtbuildError as error:
            found = Check(
                group="store", name=shown_uri(remote), state="broken", detail=str(error)
            )
        checks.append(found)
    return checks


def store_check(uri: str) -> Check:
    """Return whether engines can be stored; a store that does not exist yet is not made."""
    name = ",".join(shown_uri(part) for part in uri.split(",")) or "user cache"
    try:
        root = location.root_of(uri)
        existing = next(folder for folder in (root, *root.parents) if folder.exists())
        if existing == root:
            location.prepare(root)
    except TrtbuildError as error:
        return Check(group="store", name=name, state="broken", detail=str(error))
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        return Check(
            group="store",
            name=name,
            state="broken",
            detail=f"{root}: cannot write to {existing}: {error.strerror}",
            remedy="give a folder that you may write to with --store or TRTBUILD_STORE",
        )
    use = "" if existing == root else "; made at first use"
    return Check(
        group="store",
        name=name,
        state="ok",
        detail=f"{root}, {free / _GIB:.1f} GiB free{use}",
    )
