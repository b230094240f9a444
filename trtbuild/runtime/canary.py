"""The first load of an engine on a machine happens in a child process, which may die.

What is well signed can still be built for another driver, or crash a library. The child has
limited time and memory and a private folder, and is confined as builds are
(:mod:`trtbuild.backends.sandbox`): where bubblewrap works it sees neither network nor files of
the user. It deserializes the engine, compares its inputs and outputs with the manifest, and
runs it once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.backends import gpu, processor, runtime, sandbox, waiting
from trtbuild.backends.session import DEFAULT, NOTHING, SessionOptions
from trtbuild.canonical import digest, encode
from trtbuild.engine import ShapeRange, Target, TensorSpec, Value
from trtbuild.runtime import trust_files
from trtbuild.trust.refusal import refusal

if TYPE_CHECKING:
    from trtbuild.backends.session import Attached
    from trtbuild.engine import Manifest
    from trtbuild.errors import TrustError

VERSION = 2
"""Raised when the child starts to look at more."""

_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_CHILD = ("-m", "trtbuild.runtime.canary_child")
_DRIVER = Path("/proc/driver/nvidia/version")
_MIB = 1 << 20
_MEMORY_MIB = 4096
_KEPT_OUTPUT = 2000


class Trial(Value, frozen=True, kw_only=True):
    """What the child is told, as one line of JSON before the engine's bytes and their company.

    ``engine_bytes``, ``plugin_bytes`` and ``weights_bytes`` are the sizes of what follows.

    ``memory_bytes`` limits the address space; 0 is no limit, since CUDA reserves far more than
    it uses.
    """

    target: Target
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: tuple[ShapeRange, ...]
    memory_bytes: int
    seconds: int
    options: SessionOptions
    engine_bytes: int
    plugin_bytes: tuple[int, ...]
    plugin_digests: str
    dla_core: int
    weights_bytes: int


def require(
    manifest: Manifest,
    data: bytes,
    seconds: int,
    options: SessionOptions = DEFAULT,
    beside: Attached = NOTHING,
) -> None:
    """Load an engine in a child process, unless it was loaded well on this machine before.

    Raises:
        TrustError: T15, the child refused it, died, or took too long.
        MissingBackendError: a sandbox is required, and none works here.
    """
    mark = _mark(manifest)
    if trust_files.is_marked(mark):
        return
    trial = _trial(manifest, len(data), seconds, options, beside)
    problem = _try(trial, (data, *beside.plugins, beside.weights))
    if problem:
        raise _failed(manifest, problem)
    # A machine that cannot remember it tries again at the next load.
    with contextlib.suppress(OSError):
        trust_files.mark(mark)


def _try(trial: Trial, parts: tuple[bytes, ...]) -> str:
    """Return what went wrong in the child, or an empty string."""
    with tempfile.TemporaryDirectory(prefix="trtbuild-canary-") as folder:
        program = sandbox.chosen().program
        confined = sandbox.confined(program, (), (Path(folder),)) if program else []
        with subprocess.Popen(  # noqa: S603  our own interpreter and module
            [*confined, sys.executable, *_CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=_environment(folder) | ({"HOME": folder} if program else {}),
            start_new_session=True,
        ) as child:
            deadline = time.monotonic() + trial.seconds
            given = (encode(trial) + b"\n", *parts)
            try:
                output, in_time = waiting.until(child, deadline, given=given)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
    if not in_time:
        return f"it was not done after {trial.seconds} s"
    code = sandbox.returncode(child.returncode) if program else child.returncode
    if code == 0:
        return ""
    last = output.decode("utf-8", "replace").strip()[-_KEPT_OUTPUT:]
    if code < 0:
        return f"it died by {signal.Signals(-code).name}: {last or 'no output'}"
    return last or f"it ended with {code}"


def _trial(
    manifest: Manifest,
    engine_bytes: int,
    seconds: int,
    options: SessionOptions,
    beside: Attached,
) -> Trial:
    target = manifest.preimage.target
    limit = _MEMORY_MIB * _MIB + 4 * engine_bytes if target.backend == "onnxruntime" else 0
    return Trial(
        target=target,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        profile=next(iter(manifest.preimage.profiles), ()),
        memory_bytes=limit,
        seconds=seconds,
        options=options,
        engine_bytes=engine_bytes,
        plugin_bytes=tuple(len(each) for each in beside.plugins),
        plugin_digests=beside.plugin_digests,
        dla_core=beside.dla_core,
        weights_bytes=len(beside.weights),
    )


def _mark(manifest: Manifest) -> Path:
    """Return the file that says that an engine was loaded well by what is here.

    What is here is the installed library, which is not the builder's where engines are
    version-compatible, the devices and the driver. What the manifest says of inputs and outputs
    is part of it, since that was compared.
    """
    backend = manifest.preimage.target.backend
    is_gpu = backend != "onnxruntime"
    devices = list(gpu.names()) if is_gpu else [processor.arch()]
    driver = _DRIVER.read_text(errors="replace") if is_gpu and _DRIVER.exists() else ""
    name = digest(
        f"canary/v{VERSION}",
        [
            *(manifest.sha256, manifest.key, manifest.inputs, manifest.outputs),
            *(runtime(backend).version(backend), devices, driver),
        ],
    )
    return trust_files.state_folder() / "canary" / name


def _environment(folder: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    package = Path(__file__).resolve().parents[2]
    return kept | {"PYTHONPATH": str(package), "PYTHONUTF8": "1", "TMPDIR": folder}


def _failed(manifest: Manifest, problem: str) -> TrustError:
    return refusal(
        "T15",
        f"engine {manifest.sha256[:12]} for {manifest.preimage.target}: in a child process "
        f"{problem}",
        "a load, the inputs and outputs of its manifest, and finite outputs",
        "Do not serve it here. If driver or library changed, build it again; a policy gives it "
        "more time with canary_seconds",
    )
